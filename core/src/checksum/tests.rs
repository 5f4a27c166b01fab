//! Every kernel against `crc-fast`, and copies against their guard bytes.

use super::{ALL_ONES, Checksum, Kernel, checksum};
use crc_fast::CrcAlgorithm::Crc64Nvme;
use proptest::prelude::*;

const GUARD: u8 = 0xa5;
const MARGIN: usize = 128;

/// Reproducible bytes without a pattern.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..length).map(step).collect()
}

/// Copies with `kernel` between the given offsets, cut as `splits` says, and
/// checks the value, the copied bytes and the bytes around them.
fn check_copy(kernel: Kernel, bytes: &[u8], offsets: (usize, usize), splits: &[usize]) {
    let mut source = vec![!GUARD; offsets.0];
    source.extend_from_slice(bytes);
    let mut destination = vec![GUARD; MARGIN + offsets.1 + bytes.len() + MARGIN];
    let begin = MARGIN + offsets.1;
    let mut cuts: Vec<usize> = splits.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    let mut state = ALL_ONES;
    for cut in cuts.windows(2) {
        let target = &mut destination[begin + cut[0]..begin + cut[1]];
        let piece = &source[offsets.0 + cut[0]..offsets.0 + cut[1]];
        // SAFETY: both slices have the length of the cut and do not overlap.
        state = unsafe { kernel.copy(state, target.as_mut_ptr(), piece.as_ptr(), piece.len()) };
    }
    assert_eq!(
        state ^ ALL_ONES,
        crc_fast::checksum(Crc64Nvme, bytes),
        "{kernel:?}"
    );
    let (before, rest) = destination.split_at(begin);
    let (copied, after) = rest.split_at(bytes.len());
    assert_eq!(copied, bytes, "{kernel:?}");
    assert!(
        before.iter().chain(after).all(|byte| *byte == GUARD),
        "{kernel:?}"
    );
}

/// Updates with `kernel`, cut in two, and checks the value.
fn check_update(kernel: Kernel, bytes: &[u8], cut: usize) {
    let (first, second) = bytes.split_at(cut % (bytes.len() + 1));
    let state = kernel.update(kernel.update(ALL_ONES, first), second);
    assert_eq!(
        state ^ ALL_ONES,
        crc_fast::checksum(Crc64Nvme, bytes),
        "{kernel:?}"
    );
}

#[test]
fn check_value() {
    const EXPECTED: u64 = 0xae8b_1486_0a79_9888;
    assert_eq!(checksum(b"123456789"), EXPECTED);
    for kernel in Kernel::supported() {
        assert_eq!(
            kernel.update(ALL_ONES, b"123456789") ^ ALL_ONES,
            EXPECTED,
            "{kernel:?}"
        );
    }
}

#[test]
fn nothing_appended() {
    assert_eq!(checksum(b""), 0);
    assert_eq!(Checksum::default().value(), 0);
    let mut running = Checksum::new();
    running.copy(&mut [], &[]);
    assert_eq!(running, Checksum::new());
}

#[test]
fn every_short_length_and_alignment() {
    let bytes = noise(600, 1);
    for kernel in Kernel::supported() {
        for length in 0..=bytes.len() {
            check_copy(kernel, &bytes[..length], (length % 7, length % 67), &[]);
            check_update(kernel, &bytes[length..], length / 3);
        }
    }
}

#[test]
fn every_streaming_alignment() {
    let bytes = noise(5000, 2);
    for kernel in Kernel::supported() {
        for alignment in 0..64 {
            check_copy(kernel, &bytes[alignment..], (63 - alignment, alignment), &[]);
            check_copy(kernel, &bytes[..1016 + alignment / 4], (1, alignment), &[]);
        }
    }
}

#[test]
fn large_pieces() {
    let bytes = noise((1 << 20) + 77, 3);
    for kernel in Kernel::supported() {
        check_copy(kernel, &bytes, (5, 9), &[16 * 1024, 147_456, 147_457, 900_001]);
        check_update(kernel, &bytes, 300_000);
    }
}

#[test]
fn public_interface_chains() {
    let bytes = noise(40_000, 4);
    let mut copied = vec![0; 30_000];
    let mut running = Checksum::new();
    running.update(&bytes[..5000]);
    running.copy(&mut copied, &bytes[5000..35_000]);
    assert_eq!(running.value(), checksum(&bytes[..35_000]));
    running.update(&bytes[35_000..]);
    assert_eq!(copied, bytes[5000..35_000]);
    assert_eq!(running.value(), crc_fast::checksum(Crc64Nvme, &bytes));
}

#[test]
#[cfg(not(debug_assertions))]
fn different_lengths_copy_the_shorter() {
    let mut running = Checksum::new();
    let mut copied = [0; 6];
    running.copy(&mut copied, b"1234");
    running.copy(&mut copied[4..], b"56789");
    assert_eq!(&copied, b"123456");
    assert_eq!(running.value(), checksum(b"123456"));
}

#[test]
#[cfg(target_arch = "x86_64")]
fn accelerated_kernels_are_preferred() {
    let wide = super::x86_64::wide_is_supported();
    assert_eq!(Kernel::selected() == Kernel::Wide, wide);
    assert_eq!(Kernel::supported().last(), Some(Kernel::Portable));
}

proptest! {
    #[test]
    fn copies_agree(
        bytes in prop::collection::vec(any::<u8>(), 0..5000),
        offsets in (0_usize..64, 0_usize..64),
        splits in prop::collection::vec(any::<usize>(), 0..4),
    ) {
        for kernel in Kernel::supported() {
            check_copy(kernel, &bytes, offsets, &splits);
        }
    }

    #[test]
    fn updates_agree(
        bytes in prop::collection::vec(any::<u8>(), 0..5000),
        skipped in 0_usize..64,
        cut in any::<usize>(),
    ) {
        for kernel in Kernel::supported() {
            check_update(kernel, bytes.get(skipped..).unwrap_or_default(), cut);
        }
    }
}

#[test]
fn bytes_elsewhere_are_appended() {
    let bytes = noise(70_000, 5);
    for cut in [0, 1, 7, 8, 4096, 65_536, 69_999, 70_000] {
        let mut all = Checksum::new();
        all.update(&bytes[..cut]);
        all.append(checksum(&bytes[cut..]), (bytes.len() - cut) as u64);
        assert_eq!(all.value(), checksum(&bytes), "cut at {cut}");
        all.update(&bytes[..100]);
        let whole = [&bytes[..], &bytes[..100]].concat();
        assert_eq!(all.value(), checksum(&whole), "cut at {cut}, and goes on");
    }
}
