// log, sin and cos in float32, equal to the last bit to those of torch's vectorised CPU kernels: the Cephes
// polynomials, each multiply-add rounded once. JavaScript's own functions differ in the last places, and a
// seed would not give the same noise as in Python.

const { fround } = Math;

/**
 * a * b + c rounded once. The product of two float32 is exact in float64.
 * @param {number} a
 * @param {number} b
 * @param {number} c
 */
function fma(a, b, c) {
  return fround(a * b + c);
}

/**
 * @param {number} x
 * @param {Float32Array} coefficients the highest power first
 */
function polynomial(x, coefficients) {
  let value = coefficients[0];
  for (let i = 1; i < coefficients.length; i += 1) value = fma(value, x, coefficients[i]);
  return value;
}

const LOG = Float32Array.of(
  7.0376836292e-2, -1.151461031e-1, 1.167699874e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
  2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
);
// ln 2 in two parts: multiples of the first are exact.
const LN2_HIGH = fround(0.693359375);
const LN2_LOW = fround(-2.12194440e-4);
const SQRT_HALF = fround(Math.SQRT1_2);

const SIN = Float32Array.of(-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1);
const COS = Float32Array.of(2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2);
const PER_EIGHTH = fround(4 / Math.PI);
const EIGHTH = Float32Array.of(0.78515625, 2.4187564849853515625e-4, 3.77489497744594108e-8); // pi / 4 in three parts

const bits = new DataView(new ArrayBuffer(4));

/**
 * Natural logarithm.
 * @param {number} x float32, positive and not subnormal
 * @returns {number} float32
 */
export function log32(x) {
  bits.setFloat32(0, x);
  const word = bits.getUint32(0);
  let exponent = (word >>> 23) - 126;
  bits.setUint32(0, (word & 0x7fffff) | 0x3f000000);
  // x = mantissa * 2^exponent with 0.5 <= mantissa < 1
  let mantissa = bits.getFloat32(0);
  if (mantissa < SQRT_HALF) {
    exponent -= 1;
    mantissa = fround(fround(mantissa - 1) + mantissa);
  } else {
    mantissa = fround(mantissa - 1);
  }
  const square = fround(mantissa * mantissa);
  const curve = fround(polynomial(mantissa, LOG) * mantissa);
  const rest = fma(-0.5, square, fma(curve, square, fround(exponent * LN2_LOW)));
  return fma(exponent, LN2_HIGH, fround(mantissa + rest));
}

/**
 * Sine and cosine.
 * @param {number} angle float32, from 0 up to some thousands
 * @returns {[number, number]} float32
 */
export function sincos32(angle) {
  const octant = (Math.trunc(fround(angle * PER_EIGHTH)) + 1) & ~1;
  let x = angle;
  for (const part of EIGHTH) x = fma(-octant, part, x);
  const square = fround(x * x);
  const cosine = fround(fma(fround(polynomial(square, COS) * square), square, -0.5 * square) + 1);
  const sine = fma(fround(polynomial(square, SIN) * square), x, x);
  const quarter = (octant >> 1) & 3;
  if (quarter === 0) return [sine, cosine];
  if (quarter === 1) return [cosine, -sine];
  if (quarter === 2) return [-sine, -cosine];
  return [-cosine, sine];
}
