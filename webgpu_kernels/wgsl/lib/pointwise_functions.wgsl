// Scalar functions of f32 that stay finite at any finite argument: exp and tanh of large arguments
// give infinity or NaN on some drivers.

fn sigmoid(x: f32) -> f32 {
    return 1.0 / (1.0 + exp(min(-x, 80.0)));
}

fn silu(x: f32) -> f32 {
    return x * sigmoid(x);
}

fn bounded_tanh(x: f32) -> f32 {
    return tanh(clamp(x, -12.0, 12.0));
}

// The error function from its rational approximation by Hastings, absolute error below 2e-7.
fn error_function(x: f32) -> f32 {
    let magnitude = min(abs(x), 6.0);
    let t = 1.0 / (1.0 + 0.3275911 * magnitude);
    let series = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
    return sign(x) * (1.0 - series * exp(-magnitude * magnitude));
}

fn gelu(x: f32) -> f32 {
    return 0.5 * x * (1.0 + error_function(x * 0.7071067811865476));
}
