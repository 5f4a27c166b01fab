//! Polynomial arithmetic of the `x86_64` kernels: folding and reduction.
//!
//! # Method
//!
//! The method is the folding of V. Gopal et al., "Fast CRC Computation for Generic
//! Polynomials Using PCLMULQDQ Instruction", Intel white paper, 2009. A message is
//! a polynomial over GF(2), and its checksum depends only on its remainder modulo
//! P. So a 16-byte block `B` that lies `D` bits ahead of another block may be
//! removed from the message if `B * x^D mod P` is added to that other block:
//!
//! ```text
//! B * x^D  =  first * x^(D + 64) + second * x^D
//!          =  first * (x^(D + 64) mod P) + second * (x^D mod P)    (mod P)
//! ```
//!
//! where `first` and `second` are the halves of `B`. That is two multiplications
//! of 64 by 64 bits and two additions for each 16 bytes. The main loops keep eight
//! blocks (128 bytes) in flight, so that consecutive multiplications do not wait
//! for each other. When fewer than 128 bytes are left, the eight blocks themselves are a
//! message with the same remainder as everything before; they are folded into one
//! block and that one is reduced to 64 bits. The state of earlier calls enters by
//! being added to the first 8 bytes.
//!
//! # Bit order
//!
//! CRC-64/NVME is a reflected code: the *lowest* bit of a register is the
//! *highest* power of x, bit `i` of a 64-bit word standing for `x^(63 - i)`. The
//! carry-less product of two such words is one bit short of 128, so read as a
//! reflected 128-bit value it stands for `a * b * x`. Every constant below makes
//! up for that with an exponent that is one lower.

use core::arch::x86_64::{
    __m128i, __m256i, _mm_clmulepi64_si128, _mm_cvtsi64_si128, _mm_cvtsi128_si64, _mm_extract_epi64,
    _mm_set_epi64x, _mm_srli_si128, _mm_xor_si128, _mm256_clmulepi64_epi128, _mm256_xor_si256,
};

/// P without its `x^64` term, reflected.
const POLYNOMIAL: u64 = 0xad93_d235_94c9_3659_u64.reverse_bits();
/// P divided by x, rounded down: the terms `x^64` to `x^1` of P, reflected.
const POLYNOMIAL_TOP: u64 = (POLYNOMIAL << 1) | 1;
/// `x^128 / P` divided by x, rounded down, reflected.
const QUOTIENT_TOP: u64 = quotient_top();

/// `word * x mod P`.
const fn multiply_by_x(word: u64) -> u64 {
    (word >> 1) ^ if word & 1 == 1 { POLYNOMIAL } else { 0 }
}

/// `x^exponent mod P`.
const fn power_of_x(exponent: usize) -> u64 {
    let mut power = 1 << 63;
    let mut step = 0;
    while step < exponent {
        power = multiply_by_x(power);
        step += 1;
    }
    power
}

/// Long division of `x^128` by P, down to the `x^1` term of the quotient.
const fn quotient_top() -> u64 {
    // The x^64 term, which leaves x^64 * POLYNOMIAL of the dividend.
    let mut quotient = 1;
    let mut remainder = POLYNOMIAL;
    let mut bit = 1;
    while bit < 64 {
        quotient |= (remainder & 1) << bit;
        remainder = multiply_by_x(remainder);
        bit += 1;
    }
    quotient
}

/// Multipliers that move a block forward by `DISTANCE` bytes.
#[inline]
#[target_feature(enable = "sse4.1,pclmulqdq")]
pub(super) fn fold_constants<const DISTANCE: usize>() -> __m128i {
    let (first, second) = const { (power_of_x(8 * DISTANCE + 64 - 1), power_of_x(8 * DISTANCE - 1)) };
    _mm_set_epi64x(second.cast_signed(), first.cast_signed())
}

/// Moves `block` onto `next`.
#[inline]
#[target_feature(enable = "sse4.1,pclmulqdq")]
pub(super) fn fold(block: __m128i, constants: __m128i, next: __m128i) -> __m128i {
    let first = _mm_clmulepi64_si128::<0x00>(block, constants);
    let second = _mm_clmulepi64_si128::<0x11>(block, constants);
    _mm_xor_si128(_mm_xor_si128(first, next), second)
}

/// Moves two adjacent blocks onto the two of `next`.
#[inline]
#[target_feature(enable = "avx2,vpclmulqdq")]
pub(super) fn fold_pair(blocks: __m256i, constants: __m256i, next: __m256i) -> __m256i {
    let first = _mm256_clmulepi64_epi128::<0x00>(blocks, constants);
    let second = _mm256_clmulepi64_epi128::<0x11>(blocks, constants);
    _mm256_xor_si256(_mm256_xor_si256(first, next), second)
}

/// `word * x^64 mod P`, by Barrett reduction.
///
/// With `q = word * x^64 / P` rounded down, which is `word * (x^128 / P) / x^64`
/// rounded down, the result is the low 64 terms of `q * P`. The constants lack
/// their `x^0` term: it cannot reach the upper half of the first product, and
/// contributes exactly `q` to the lower half of the second.
#[inline]
#[target_feature(enable = "sse4.1,pclmulqdq")]
pub(super) fn reduce_word(word: u64) -> u64 {
    let constants = _mm_set_epi64x(POLYNOMIAL_TOP.cast_signed(), QUOTIENT_TOP.cast_signed());
    let quotient = _mm_clmulepi64_si128::<0x00>(_mm_cvtsi64_si128(word.cast_signed()), constants);
    let product = _mm_clmulepi64_si128::<0x10>(quotient, constants);
    (_mm_extract_epi64::<1>(product) ^ _mm_cvtsi128_si64(quotient)).cast_unsigned()
}

/// `block * x^64 mod P`: the state after a message that consists of `block`.
#[inline]
#[target_feature(enable = "sse4.1,pclmulqdq")]
pub(super) fn reduce_block(block: __m128i) -> u64 {
    let constant = const { power_of_x(128 - 1) };
    let first = _mm_clmulepi64_si128::<0x00>(block, _mm_cvtsi64_si128(constant.cast_signed()));
    let sum = _mm_xor_si128(first, _mm_srli_si128::<8>(block));
    let upper = _mm_cvtsi128_si64(sum).cast_unsigned();
    _mm_extract_epi64::<1>(sum).cast_unsigned() ^ reduce_word(upper)
}

/// Folds eight consecutive blocks into one and reduces it.
#[inline]
#[target_feature(enable = "sse4.1,pclmulqdq")]
pub(super) fn reduce_blocks(blocks: [__m128i; 8]) -> u64 {
    let constants = fold_constants::<16>();
    let [mut block, rest @ ..] = blocks;
    for next in rest {
        block = fold(block, constants, next);
    }
    reduce_block(block)
}
