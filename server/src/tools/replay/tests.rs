use super::*;
use crate::tools::trace::{Generator, TraceRequest, write_request};
use indicatif::ProgressBar;
use kvstored_backends::cache::{CacheSettings, CacheTier};
use kvstored_core::{Engine, EngineSettings};
use std::collections::HashSet;
use std::io::Cursor;
use std::path::Path;

const BLOCK_BYTES: u32 = 1024;

fn trace(requests: usize) -> Vec<TraceRequest> {
    Generator::new(11).take(requests).collect()
}

fn reader(requests: &[TraceRequest]) -> TraceReader {
    let mut text = Vec::new();
    for request in requests {
        write_request(&mut text, request).unwrap();
    }
    TraceReader::new(Box::new(Cursor::new(text)), Path::new("generated.jsonl"))
}

fn settings() -> ReplaySettings {
    ReplaySettings {
        layout: Layout::uniform(1, 1, BLOCK_BYTES).unwrap(),
        limit: u64::MAX,
        speed: 0.0,
        concurrency: 1,
        durability: Durability::Tier,
        timeout: Duration::from_secs(30),
    }
}

fn cache_alone(capacity_bytes: u64) -> Arc<Client> {
    let runtime = Runtime::system();
    let memory = CacheTier::open(
        CacheSettings {
            capacity_bytes,
            ..CacheSettings::default()
        },
        None,
    )
    .unwrap();
    let engine = Engine::new(
        EngineSettings::default(),
        runtime.clone(),
        memory,
        true,
        Vec::new(),
    );
    Arc::new(Client::embedded(engine, ClientSettings::default(), runtime).unwrap())
}

fn run_with(client: &Arc<Client>, requests: &[TraceRequest], settings: &ReplaySettings) -> Result<Tally> {
    replay(
        client,
        reader(requests),
        settings,
        &Runtime::system(),
        &ProgressBar::hidden(),
    )
}

/// Blocks that were seen before, at the start of each prompt: the hits of a cache without end.
fn infinite_hits(requests: &[TraceRequest]) -> u64 {
    let mut seen = HashSet::new();
    let mut hits = 0;
    for request in requests {
        hits += request
            .hash_ids
            .iter()
            .take_while(|id| seen.contains(*id))
            .count() as u64;
        seen.extend(request.hash_ids.iter().copied());
    }
    hits
}

#[test]
fn a_cache_that_holds_everything_hits_whatever_was_seen_before() {
    let requests = trace(200);
    let client = cache_alone(256 << 20);
    let results = run_with(&client, &requests, &settings()).unwrap().results();
    let blocks: u64 = requests.iter().map(|request| request.hash_ids.len() as u64).sum();
    let distinct = requests
        .iter()
        .flat_map(|request| &request.hash_ids)
        .collect::<HashSet<_>>()
        .len() as u64;
    assert_eq!((results.requests, results.prompt_blocks), (200, blocks));
    assert_eq!(results.hit_blocks, infinite_hits(&requests));
    assert_eq!(results.dumped_blocks, distinct);
    assert_eq!(results.loaded_bytes, results.hit_blocks * u64::from(BLOCK_BYTES));
    assert_eq!(results.hits_by_tier.values().sum::<u64>(), results.hit_blocks);
    assert!(results.is_clean());
}

#[test]
fn a_small_cache_hits_less_and_returns_nothing_wrong() {
    let requests = trace(150);
    let client = cache_alone(2 << 20);
    let results = run_with(&client, &requests, &settings()).unwrap().results();
    assert!(results.is_clean(), "{results:?}");
    assert!(
        results.hit_blocks > 0 && results.hit_blocks < infinite_hits(&requests),
        "{results:?}"
    );
}

#[test]
fn streams_share_the_trace() {
    let requests = trace(150);
    let client = cache_alone(256 << 20);
    let settings = ReplaySettings {
        concurrency: 3,
        limit: 120,
        ..settings()
    };
    let results = run_with(&client, &requests, &settings).unwrap().results();
    let blocks: u64 = requests
        .iter()
        .take(120)
        .map(|request| request.hash_ids.len() as u64)
        .sum();
    assert_eq!((results.requests, results.prompt_blocks), (120, blocks));
    assert!(results.is_clean(), "{results:?}");
}

#[test]
fn blocks_come_back_from_disk_after_a_restart() {
    let requests = trace(60);
    let directory = tempfile::tempdir().unwrap();
    let open = || {
        let embedded = EmbeddedSettings {
            pipeline: "Cache|Posix".parse().unwrap(),
            directories: vec![directory.path().to_owned()],
            cache_capacity_bytes: 64 << 20,
            posix_capacity_bytes: 256 << 20,
            hbm_capacity_bytes: None,
            policy: PolicyKind::default(),
        };
        Embedded::open(embedded, ClientSettings::default(), &Runtime::system()).unwrap()
    };
    let first = run_with(&open().client, &requests, &settings())
        .unwrap()
        .results();
    assert!(first.is_clean(), "{first:?}");
    assert_eq!(first.hit_blocks, infinite_hits(&requests));
    let second = run_with(&open().client, &requests, &settings())
        .unwrap()
        .results();
    assert!(second.is_clean(), "{second:?}");
    assert_eq!(second.hit_blocks, second.prompt_blocks);
    assert_eq!(second.dumped_blocks, 0);
    assert!(second.hits_by_tier["Posix"] > 0, "{second:?}");
}

#[test]
fn a_broken_line_stops_the_replay_and_is_named() {
    let mut text = Vec::new();
    write_request(&mut text, &trace(1)[0]).unwrap();
    text.extend_from_slice(b"{\"timestamp\": 1}\n");
    let reader = TraceReader::new(Box::new(Cursor::new(text)), Path::new("generated.jsonl"));
    let client = cache_alone(16 << 20);
    let result = replay(
        &client,
        reader,
        &settings(),
        &Runtime::system(),
        &ProgressBar::hidden(),
    );
    assert!(result.unwrap_err().to_string().contains("generated.jsonl line 2"));
}

#[test]
fn the_report_and_the_json_have_every_key() {
    let requests = trace(50);
    let client = cache_alone(64 << 20);
    let tally = run_with(&client, &requests, &settings()).unwrap();
    let results = tally.results();
    let json = serde_json::to_value(&results).unwrap();
    let keys: HashSet<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = [
        "requests",
        "prompt_blocks",
        "hit_blocks",
        "hit_ratio",
        "hits_by_tier",
        "dumped_blocks",
        "loaded_bytes",
        "dumped_bytes",
        "corrupt_blocks",
        "errors",
        "seconds",
        "load_gbps",
        "dump_gbps",
        "lookup_us",
        "load_us",
    ];
    assert_eq!(keys, HashSet::from(expected));
    assert!(json["lookup_us"]["p50"].is_number() && json["load_us"]["p99"].is_number());
    let html = page::page(
        Path::new("a<b.jsonl"),
        &results,
        &tally,
        &client.statistics().unwrap(),
    )
    .html();
    assert!(!html.contains("http") && html.contains("a&lt;b.jsonl"));
    for heading in [
        "Summary",
        "Hit ratio",
        "Hits by tier",
        "Latency of lookups",
        "Throughput",
        "Tiers at the end",
    ] {
        assert!(html.contains(heading), "{heading}");
    }
}

#[test]
fn wrong_arguments_are_explained() {
    use clap::Parser;
    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        _args: Args,
    }
    for (arguments, word) in [
        (vec!["--speed", "-1"], "speed"),
        (vec!["--durability", "sometimes"], "sometimes"),
        (vec!["--block-bytes", "many"], "many"),
        (vec!["--cache-buffer-capacity", "-5"], "-5"),
        (vec!["--pipeline", "Cash"], "Cash"),
        (vec!["--socket", "s", "--pipeline", "Cache"], "--pipeline"),
    ] {
        let all = ["replay", "trace.jsonl"].into_iter().chain(arguments);
        let error = Command::try_parse_from(all).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}
