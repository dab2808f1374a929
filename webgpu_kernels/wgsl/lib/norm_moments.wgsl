// Count, mean and sum of squared deviations of a set of values, and of the union of two sets: no
// large numbers are subtracted from each other, however far the mean lies above the deviation.

struct Moments {
    count: f32,
    mean: f32,
    squares: f32,
}

// `b` must not be empty.
fn merge(a: Moments, b: Moments) -> Moments {
    let count = a.count + b.count;
    let distance = b.mean - a.mean;
    let share = b.count / count;
    return Moments(
        count,
        a.mean + distance * share,
        a.squares + b.squares + distance * distance * a.count * share,
    );
}
