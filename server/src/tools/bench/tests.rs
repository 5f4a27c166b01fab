use super::*;
use kvstored_core::Durability;
use std::collections::HashSet;

#[test]
fn figures_have_different_names_and_the_required_ones_are_there() {
    let names: Vec<&str> = GROUPS
        .iter()
        .flat_map(|(names, _)| names.iter().copied())
        .collect();
    assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
    for required in [
        "load_cache",
        "load_cache_layerwise",
        "load_posix_cold",
        "dump_sustained",
        "lookup_on_prefix_8192",
        "daemon_round_trip_p50",
    ] {
        assert!(names.contains(&required), "{required}");
    }
}

#[test]
fn a_report_shows_figures_with_and_without_limits() {
    let limited =
        figure::Samples::take(2, |side| Ok(if side == figure::Side::Ours { 9.0 } else { 10.0 })).unwrap();
    let alone = figure::Samples::alone(2, || Ok(3.0)).unwrap();
    let figures = [
        Figure::new("load_cache", "GB/s", &limited, "a < b"),
        Figure::new("idle", "%", &alone, ""),
    ];
    let html = page(&figures).html();
    assert!(html.contains("load_cache (limit)") && html.contains("a &lt; b") && html.contains("idle"));
    let json = serde_json::to_value(&figures).unwrap();
    assert_eq!(json[0]["ratio"], 0.9);
    assert_eq!(json[1]["limit"], serde_json::Value::Null);
    for key in ["name", "value", "unit", "low", "high"] {
        assert!(!json[1][key].is_null(), "{key}");
    }
}

#[test]
fn an_unknown_figure_geometry_or_directory_is_named() {
    use clap::Parser;
    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }
    for (arguments, word) in [
        (["bench", "--only", "speed"], "\"speed\""),
        (["bench", "--geometry", "huge"], "\"huge\""),
        (
            ["bench", "--storage-backends", "/nonexistent/x"],
            "/nonexistent/x",
        ),
    ] {
        let error = run(Command::parse_from(arguments).args).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

fn setup(directory: &std::path::Path) -> Setup {
    Setup::new(Runtime::system(), None, Some(directory), 1, false, Vec::new()).unwrap()
}

#[test]
fn scattered_memory_comes_back_as_it_was_and_as_it_would_be_copied() {
    let directory = tempfile::tempdir().unwrap();
    let setup = setup(directory.path());
    let geometry = geometry::Geometry::named("tiny").unwrap();
    let embedded = setup.embedded("Cache", None, 32 << 20, 0, 1).unwrap();
    let hashes = scattered::hashes(3, 9).unwrap();
    let mut memory = scattered::Scattered::new(geometry, 9).unwrap();
    for layout in [geometry.whole_block().unwrap(), geometry.layerwise().unwrap()] {
        let namespace = embedded
            .client
            .open_namespace(&Setup::identity(), &layout)
            .unwrap();
        memory.fill(4);
        memory
            .dump(&embedded.client, &namespace, &hashes, Durability::Memory)
            .unwrap();
        memory.clear();
        memory.check(4).unwrap_err();
        memory.load(&embedded.client, &namespace, &hashes).unwrap();
        memory.check(4).unwrap();
        memory.clear();
        memory
            .load_layerwise(&embedded.client, &namespace, &hashes, &*setup.runtime.clock)
            .unwrap();
        memory.check(4).unwrap();
    }
    let unknown = scattered::hashes(5, 9).unwrap();
    let namespace = embedded
        .client
        .open_namespace(&Setup::identity(), &geometry.whole_block().unwrap())
        .unwrap();
    memory.load(&embedded.client, &namespace, &unknown).unwrap_err();
}

#[test]
fn both_ways_of_copying_move_every_byte_alike() {
    let geometry = geometry::Geometry::named("tiny").unwrap();
    let mut source = crate::tools::buffer::Buffer::new(geometry.block_bytes() * 5).unwrap();
    crate::tools::content::Content::of(8).fill(source.as_mut_slice());
    let mut copies: Vec<Vec<u8>> = Vec::new();
    for copy in [
        scattered::Scattered::copy_whole_blocks,
        scattered::Scattered::copy_layers,
    ] {
        let mut memory = scattered::Scattered::new(geometry, 5).unwrap();
        copy(&mut memory, &source);
        copies.push(memory.bytes().to_vec());
    }
    assert_eq!(copies[0], copies[1]);
    let sorted = |bytes: &[u8]| {
        let mut tensors: Vec<Vec<u8>> = bytes
            .chunks(geometry.tensor_bytes as usize)
            .map(<[u8]>::to_vec)
            .collect();
        tensors.sort();
        tensors
    };
    assert_eq!(sorted(&copies[0]), sorted(source.as_slice()));
}

#[test]
fn a_synthetic_store_is_one_that_the_engine_opens() {
    let directory = tempfile::tempdir().unwrap();
    let figures = restart::restart_with(
        &setup(directory.path()),
        3000,
        "restart_1m_blocks",
        Some("index_bytes_per_block"),
    )
    .unwrap();
    assert_eq!(figures.len(), 2);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}
