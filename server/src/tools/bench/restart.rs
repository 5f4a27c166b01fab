//! Starting on a directory with many blocks: footers as a writer leaves them, without the images.

use std::fs::{File, create_dir_all};
use std::os::unix::fs::FileExt;
use std::path::Path;

use kvstored_backends::posix::format::journal::{JournalHeader, Record};
use kvstored_backends::posix::format::manifest::Manifest;
use kvstored_backends::posix::format::owner::Owner;
use kvstored_backends::posix::format::segment::{Entry, Footer, SegmentHeader};
use kvstored_backends::posix::format::{NamespaceShape, PAGE, WriterId};
use kvstored_core::layout::PAGE_BYTES;
use kvstored_core::{Error, Layout, NamespaceInfo, Result};

use super::figure::{Figure, Samples};
use super::setup::Setup;
use crate::tools::content::block_hash;

/// Blocks of one segment: as many as fit into 1 GiB with images of two pages.
const SEGMENT_BLOCKS: u64 = 125_000;
const SEGMENT_PAGES: u32 = 1 << 18;
const WRITER: WriterId = WriterId([7; 16]);
const CACHE_BYTES: u64 = 64 << 20;
/// Capacity of an empty store, and for each block.
const POSIX_BYTES: u64 = 256 << 20;
const POSIX_BYTES_PER_BLOCK: u64 = 1600;

/// Restarts with a million blocks, and with ten million if there's time.
pub fn restart(setup: &Setup) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    if ["restart_1m_blocks", "index_bytes_per_block"]
        .iter()
        .any(|name| setup.wants(name))
    {
        figures.extend(restart_with(
            setup,
            1_000_000,
            "restart_1m_blocks",
            Some("index_bytes_per_block"),
        )?);
    }
    if setup.wants_long("restart_10m_blocks") {
        figures.extend(restart_with(setup, 10_000_000, "restart_10m_blocks", None)?);
    }
    Ok(figures)
}

pub(super) fn restart_with(
    setup: &Setup,
    blocks: u64,
    name: &'static str,
    index_name: Option<&'static str>,
) -> Result<Vec<Figure>> {
    let directory = setup.directory()?;
    let store = directory.path().join("store");
    let info = NamespaceInfo::new(Setup::identity(), Layout::uniform(1, 1, PAGE_BYTES as u32)?)?;
    write_store(&store, &info, blocks, setup.runtime.clock.unix_ms() * 1000)?;
    let posix_bytes = POSIX_BYTES + blocks * POSIX_BYTES_PER_BLOCK;
    let mut bytes_per_block = 0.0;
    let samples = Samples::alone(setup.rounds, || {
        let started = setup.now();
        let embedded = setup.embedded("Cache|Posix", Some(&store), CACHE_BYTES, posix_bytes, 1)?;
        let seconds = setup.since(started);
        let statistics = embedded.client.statistics()?;
        let tier = statistics
            .tiers
            .last()
            .ok_or_else(|| Error::internal("the engine has no tiers"))?;
        let found = tier.statistics.blocks;
        if found != blocks {
            return Err(Error::internal(format!(
                "{found} of {blocks} blocks are there after the start"
            )));
        }
        bytes_per_block = tier.statistics.index_bytes as f64 / found as f64;
        Ok(seconds)
    })?;
    let note = format!("{blocks} blocks in synthetic footers, until the engine answers");
    let mut figures = vec![Figure::new(name, "s", &samples, note)];
    if let Some(name) = index_name {
        let samples = Samples::alone(1, || Ok(bytes_per_block))?;
        figures.push(Figure::new(
            name,
            "bytes",
            &samples,
            format!("the Posix tier's index with {blocks} blocks"),
        ));
    }
    Ok(figures)
}

/// Writes what a dead writer with that many blocks would have left; segments are sparse, with their footers only.
fn write_store(store: &Path, info: &NamespaceInfo, blocks: u64, unix_us: u64) -> Result<()> {
    let failed = |error| Error::from_io(error, "the synthetic store can't be written");
    let writer = store.join("writers").join(WRITER.to_string());
    for directory in [&store.join("namespaces"), &writer] {
        create_dir_all(directory).map_err(failed)?;
    }
    std::fs::write(store.join("FORMAT"), "kvstored storage 1\n").map_err(failed)?;
    let manifest = Manifest {
        info: Some(std::sync::Arc::new(info.clone())),
        purged_generation: 0,
    }
    .encode()?;
    std::fs::write(
        store.join("namespaces").join(format!("{}.json", info.namespace)),
        manifest,
    )
    .map_err(failed)?;
    let owner = Owner {
        epoch: 1,
        writer: WRITER,
        process_id: 0,
        boot_id: [0; 16],
        unix_us,
        host: "nowhere".into(),
    };
    std::fs::write(writer.join("owner"), owner.encode()).map_err(failed)?;

    let shape = NamespaceShape::of(info);
    let header = JournalHeader {
        writer: WRITER,
        epoch: 1,
        sequence: 1,
        boot_id: [0; 16],
        created_unix_us: unix_us,
    };
    let mut journal = header.encode().to_vec();
    journal.extend_from_slice(&Record::Namespace { ordinal: 0, shape }.encode());
    for segment in 0..blocks.div_ceil(SEGMENT_BLOCKS) {
        let first = segment * SEGMENT_BLOCKS;
        let last = (first + SEGMENT_BLOCKS).min(blocks);
        let number = segment as u32 + 1;
        let header = SegmentHeader {
            writer: WRITER,
            segment: number,
            epoch: 1,
            created_unix_us: unix_us,
            pages: SEGMENT_PAGES,
        };
        let entry = |block: u64| {
            let page = 1 + (block - first) as u32 * shape.image_pages;
            Ok(Entry {
                hash: block_hash(block)?,
                generation: unix_us + block,
                page,
                ordinal: 0,
            })
        };
        let entries = (first..last).map(entry).collect::<Result<Vec<_>>>()?;
        let footer_page = 1 + entries.len() as u32 * shape.image_pages;
        let footer = Footer {
            namespaces: vec![(0, shape)],
            entries,
        }
        .encode(&header, 1, unix_us, footer_page);
        let file = File::create(writer.join(format!("segment-{number:08x}"))).map_err(failed)?;
        file.write_all_at(&header.encode(), 0).map_err(failed)?;
        file.write_all_at(&footer, u64::from(footer_page) * PAGE)
            .map_err(failed)?;
        journal.extend_from_slice(
            &Record::SegmentSealed {
                segment: number,
                footer_page,
            }
            .encode(),
        );
    }
    journal.extend_from_slice(&Record::PrologueEnd.encode());
    std::fs::write(writer.join(format!("journal-{:016x}", 1)), journal).map_err(failed)
}
