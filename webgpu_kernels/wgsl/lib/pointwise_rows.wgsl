// One workgroup handles COLUMN_BLOCK columns of one row: 64 threads, 4 columns a thread.
// The grid is folded: groups are counted along x, then y.

const THREADS = 64u;
const COLUMN_BLOCK = 256u;
override BLOCKS: u32 = (COLUMNS + COLUMN_BLOCK - 1u) / COLUMN_BLOCK;
