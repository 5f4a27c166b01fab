//! A peer's memory that isn't shared.
#![allow(unsafe_code)]

use kvstored_core::ErrorKind;
use kvstored_core::checksum::checksum;

use super::child::{Child, pattern};
use crate::ForeignMemory;
use crate::foreign::Piece;

const BYTES: usize = 3 << 20;

fn own(child: &Child) -> u64 {
    child.ask("own").parse().unwrap()
}

fn piece(here: &mut [u8], remote: u64) -> Piece {
    Piece {
        local: here.as_mut_ptr(),
        remote,
        length: here.len(),
    }
}

#[test]
fn bytes_come_and_go_in_pieces_of_any_length() {
    let child = Child::start();
    let there = own(&child);
    let memory = ForeignMemory::new(child.process.clone());
    memory.probe(there, pattern(16).try_into().unwrap()).unwrap();
    assert_eq!(
        memory.probe(there + 1, [7; 16]).unwrap_err().kind(),
        ErrorKind::Mismatch
    );
    let mut here = vec![0; BYTES];
    let mut calls = 0;
    let pieces = [piece(&mut here, there)];
    // SAFETY: the vector is as long as told, and not touched meanwhile.
    unsafe {
        memory.read(&pieces, || {
            calls += 1;
            true
        })
    }
    .unwrap();
    assert!(here == pattern(BYTES));
    assert!(calls >= 3);
    // many small ones, some of them empty, backwards
    let mut scattered = vec![0; 200 * 1000];
    let pieces: Vec<_> = scattered
        .chunks_mut(1000)
        .enumerate()
        .map(|(index, chunk)| {
            let length = if index % 7 == 0 { 0 } else { 1000 - index };
            piece(&mut chunk[..length], there + (199 - index as u64) * 1000)
        })
        .collect();
    // SAFETY: as above.
    unsafe { memory.read(&pieces, || true) }.unwrap();
    for (index, chunk) in scattered
        .chunks(1000)
        .enumerate()
        .filter(|(index, _)| index % 7 != 0)
    {
        let start = (199 - index) * 1000;
        assert!(chunk[..1000 - index] == here[start..start + 1000 - index]);
        assert!(chunk[1000 - index..].iter().all(|byte| *byte == 0));
    }
    let mut patch = vec![9; (1 << 20) + 5];
    // SAFETY: as above.
    unsafe { memory.write(&[piece(&mut patch, there + 3)], || true) }.unwrap();
    here[3..3 + patch.len()].copy_from_slice(&patch);
    assert_eq!(child.ask("sum"), checksum(&here).to_string());
}

#[test]
fn what_is_not_there_fails_and_what_is_stopped_stops() {
    let child = Child::start();
    let there = own(&child);
    let memory = ForeignMemory::new(child.process.clone());
    let mut here = vec![0; BYTES];
    let mut read = |remote: u64, most: usize| {
        let mut asked = 0;
        // SAFETY: the vector is as long as told, and not touched meanwhile.
        unsafe {
            memory.read(&[piece(&mut here, remote)], || {
                asked += 1;
                asked <= most
            })
        }
    };
    read(there, 9).unwrap();
    assert_eq!(read(there, 2).unwrap_err().kind(), ErrorKind::Fenced);
    assert_eq!(read(there, 0).unwrap_err().kind(), ErrorKind::Fenced);
    assert_eq!(read(16, 9).unwrap_err().kind(), ErrorKind::NotFound);
    for remote in [u64::MAX, u64::MAX - BYTES as u64 + 1] {
        assert_eq!(read(remote, 9).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    assert!(read(u64::MAX - BYTES as u64, 9).is_err());
    child.kill();
    assert_eq!(read(there, 9).unwrap_err().kind(), ErrorKind::Unavailable);
}

#[test]
fn a_range_that_ends_in_the_middle_fails_after_what_is_there() {
    let child = Child::start();
    let memory = ForeignMemory::new(child.process.clone());
    // the end of the peer's stack mapping is followed by nothing that can be read for long
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", child.process.pid())).unwrap();
    let stack = maps.lines().find(|line| line.ends_with("[stack]")).unwrap();
    let end = stack.split(['-', ' ']).nth(1).unwrap();
    let end = u64::from_str_radix(end, 16).unwrap();
    let mut here = vec![0; 3 * 4096];
    // SAFETY: the vector is as long as told, and not touched meanwhile.
    let outcome = unsafe { memory.read(&[piece(&mut here, end - 4096)], || true) };
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::NotFound);
    assert!(here[..4096].iter().any(|byte| *byte != 0));
    assert!(here[4096..].iter().all(|byte| *byte == 0));
}
