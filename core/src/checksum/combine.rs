//! The checksum of two runs of bytes, one behind the other, from the checksums of each.
//!
//! A CRC is linear: behind `n` more bytes, the first run's remainder has been multiplied by x to the 8 n, modulo the
//! polynomial. The power comes from its binary digits, as in zlib's `crc32_combine`. Polynomials are reflected here, as
//! everywhere in CRC-64/NVME: the highest bit is the coefficient of 1.

/// The polynomial of CRC-64/NVME without its highest term, reflected.
const POLYNOMIAL: u64 = 0x9a6c_9329_ac4b_c9b5;
/// The polynomial 1.
const ONE: u64 = 1 << 63;
/// x to the powers of two.
const POWERS: [u64; 64] = powers();

const fn powers() -> [u64; 64] {
    let mut all = [ONE >> 1; 64];
    let mut index = 1;
    while index < all.len() {
        #[allow(clippy::indexing_slicing, reason = "checked when it's compiled")]
        {
            all[index] = product(all[index - 1], all[index - 1]);
        }
        index += 1;
    }
    all
}

/// The product of two polynomials, modulo the CRC's.
const fn product(mut left: u64, mut right: u64) -> u64 {
    let mut sum = 0;
    while left != 0 {
        if left & ONE != 0 {
            sum ^= right;
        }
        left <<= 1;
        right = (right >> 1) ^ (if right & 1 == 1 { POLYNOMIAL } else { 0 });
    }
    sum
}

/// The checksum of bytes with checksum `first`, followed by `length` bytes with checksum `second`. `length` is below
/// 2 to the 61.
pub(super) fn combine(first: u64, second: u64, length: u64) -> u64 {
    let mut factor = ONE;
    // the powers of x to eight, as many as there are bytes
    for (bit, power) in POWERS.iter().skip(3).enumerate() {
        if length >> bit & 1 == 1 {
            factor = product(*power, factor);
        }
    }
    product(factor, first) ^ second
}
