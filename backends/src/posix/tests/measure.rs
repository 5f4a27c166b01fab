//! Restart and throughput, run by hand: `cargo test --release -p kvstored-backends -- --ignored --nocapture measure`.

use std::fs;
use std::os::unix::fs::FileExt;

use kvstored_core::{BlockHash, Layout, Runtime, Tier};

use super::support::*;
use crate::posix::PosixSettings;
use crate::posix::format::journal::{JournalHeader, Record};
use crate::posix::format::segment::{Entry, Footer, SegmentHeader};
use crate::posix::format::{NamespaceShape, PAGE, WriterId};
use crate::posix::journal_writer::JournalWriter;
use crate::posix::replay::segment_name;
use crate::posix::shared::Host;

fn restart(segments: u32, blocks: u32) {
    let store = directory();
    let big = || PosixSettings {
        capacity_bytes: 1 << 50,
        segment_bytes: Some(1 << 30),
        ..settings(store.path())
    };
    let info = namespace_of("synthetic", Layout::uniform(1, 1, 60 << 10).unwrap());
    {
        let tier = open_with(big());
        tier.open_namespace(&info).unwrap();
    }
    let shape = NamespaceShape::of(&info);
    let writer = WriterId::from_hex(&open_with(big()).writer_ids()[0].clone().unwrap()).unwrap();
    let path = store.path().join("writers").join(writer.to_string());
    let mut records = vec![Record::Namespace { ordinal: 0, shape }];
    let mut number = 0u64;
    for segment in 1..=segments {
        let header = SegmentHeader {
            writer,
            segment,
            epoch: 1,
            created_unix_us: 1,
            pages: 1 << 18,
        };
        let entries: Vec<Entry> = (0..blocks)
            .map(|index| {
                number += 1;
                let mut bytes = [0; 32];
                for (part, word) in bytes.chunks_exact_mut(8).enumerate() {
                    let mixed = (number + part as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                    word.copy_from_slice(
                        &mixed
                            .rotate_left(31)
                            .wrapping_mul(0xBF58_476D_1CE4_E5B9)
                            .to_le_bytes(),
                    );
                }
                let page = 1 + index * shape.image_pages;
                Entry {
                    hash: BlockHash::new(&bytes).unwrap(),
                    generation: 1 << 50,
                    page,
                    ordinal: 0,
                }
            })
            .collect();
        let footer_page = 1 + blocks * shape.image_pages;
        let bytes = Footer {
            namespaces: vec![(0, shape)],
            entries,
        }
        .encode(&header, 1, 1, footer_page);
        let file = fs::File::create(path.join(segment_name(segment))).unwrap();
        file.write_all_at(&header.encode(), 0).unwrap();
        file.write_all_at(&bytes, u64::from(footer_page) * PAGE).unwrap();
        records.push(Record::SegmentSealed { segment, footer_page });
    }
    let header = JournalHeader {
        writer,
        epoch: 1,
        sequence: 99,
        boot_id: Host::current().boot_id,
        created_unix_us: 1,
    };
    JournalWriter::start(&path, &header, &records).unwrap();
    let clock = Runtime::system().clock;
    let started = clock.now();
    let tier = open_with(big());
    let seconds = clock.now().duration_since(started).as_secs_f64();
    let statistics = tier.statistics();
    assert_eq!(statistics.blocks, u64::from(segments) * u64::from(blocks));
    println!(
        "{} blocks: {seconds:.3} s, {:.1} bytes of index each",
        statistics.blocks,
        statistics.index_bytes as f64 / statistics.blocks as f64
    );
}

#[test]
#[ignore = "a measurement"]
fn measure_restart() {
    restart(62, 16_129);
    restart(620, 16_129);
}

/// Blocks of 1 MiB in the throughput measurement.
const THROUGHPUT_BLOCKS: u64 = 1024;

#[test]
#[ignore = "a measurement"]
fn measure_throughput() {
    use kvstored_core::{Action, Durability, Operation};
    use std::sync::Arc;
    use std::sync::mpsc::channel;

    use crate::io::files::{allocate, open_direct};
    use crate::io::{Direction, IoRequest, IoSettings, open_io_engine};

    let runtime = Runtime::system();
    let clock = Arc::clone(&runtime.clock);
    let store = directory();
    let tier = open_with(PosixSettings {
        capacity_bytes: 8 << 30,
        segment_bytes: None,
        ..settings(store.path())
    });
    let info = namespace_of("large", Layout::uniform(1, 2, 512 << 10).unwrap());
    tier.open_namespace(&info).unwrap();
    let image_bytes = info.layout.image_bytes();
    let engine = open_io_engine(&IoSettings::default(), &runtime, "limit").unwrap();
    let file = Arc::new(open_direct(&store.path().join("limit"), true).unwrap().0);
    let slots: Vec<_> = (0..THROUGHPUT_BLOCKS)
        .map(|number| image(&info, &hash(number)))
        .collect();
    let bytes = THROUGHPUT_BLOCKS as f64 * image_bytes as f64 / 1e9;
    let limit = |direction: Direction| {
        let started = clock.now();
        let (sender, receiver) = channel();
        for chunk in (0..THROUGHPUT_BLOCKS as usize).collect::<Vec<_>>().chunks(32) {
            let batch = chunk.iter().map(|number| {
                let sender = sender.clone();
                IoRequest {
                    file: Arc::clone(&file),
                    direction,
                    file_offset: (number * image_bytes) as u64,
                    buffer: slots[*number].clone(),
                    buffer_offset: 0,
                    length: image_bytes,
                    completion: Box::new(move |_, result| sender.send(result).unwrap()),
                }
            });
            engine.submit(batch.collect());
        }
        for _ in 0..THROUGHPUT_BLOCKS {
            receiver.recv().unwrap().unwrap();
        }
        bytes / clock.now().duration_since(started).as_secs_f64()
    };
    let through = |action: Action| {
        let started = clock.now();
        let (sender, receiver) = channel();
        for chunk in (0..THROUGHPUT_BLOCKS).collect::<Vec<_>>().chunks(32) {
            let batch = chunk.iter().map(|number| {
                let sender = sender.clone();
                Operation {
                    namespace: Arc::clone(&info),
                    hash: hash(*number),
                    action,
                    buffer: slots[*number as usize].clone(),
                    completion: Box::new(move |_, result| sender.send(result).unwrap()),
                }
            });
            tier.submit(batch.collect());
        }
        for _ in 0..THROUGHPUT_BLOCKS {
            receiver.recv().unwrap().unwrap();
        }
        bytes / clock.now().duration_since(started).as_secs_f64()
    };
    allocate(&file, THROUGHPUT_BLOCKS * image_bytes as u64).unwrap();
    for round in 0..4 {
        let direct_write = limit(Direction::Write);
        let dump = through(Action::Write(Durability::Tier));
        let direct_read = limit(Direction::Read);
        let load = through(Action::Read);
        println!(
            "round {round}: write {dump:.2} of {direct_write:.2} GB/s ({:.2}), read {load:.2} of {direct_read:.2} GB/s ({:.2})",
            dump / direct_write,
            load / direct_read
        );
        let hashes: Vec<BlockHash> = (0..THROUGHPUT_BLOCKS).map(hash).collect();
        assert_eq!(tier.remove(&info, &hashes), THROUGHPUT_BLOCKS);
        // the limit's file is written afresh as well
        file.set_len(0).unwrap();
        allocate(&file, THROUGHPUT_BLOCKS * image_bytes as u64).unwrap();
    }
    let wide: Vec<BlockHash> = (0..8192).map(hash).collect();
    let small = namespace(&*tier);
    write(&*tier, &small, 0..8192);
    let mut best = f64::MAX;
    for _ in 0..50 {
        let started = clock.now();
        assert_eq!(tier.lookup_on_prefix(&small, &wide), 8192);
        best = best.min(clock.now().duration_since(started).as_secs_f64());
    }
    println!("lookup_on_prefix of 8192: {:.0} us at best", best * 1e6);
}
