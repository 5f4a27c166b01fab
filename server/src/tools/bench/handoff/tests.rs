use std::collections::HashSet;

use clap::Parser;

use super::*;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    args: crate::tools::bench::Args,
}

fn prompt(name: &str, blocks: u32) -> Prompt {
    Prompt {
        geometry: Geometry::named(name).unwrap(),
        blocks,
        block_tokens: BLOCK_TOKENS,
        registered: false,
    }
}

#[test]
fn figures_have_different_names_and_others_are_refused() {
    let all: Vec<String> = Transport::ALL
        .into_iter()
        .flat_map(|transport| Spread::ALL.map(|spread| names(transport, spread)))
        .flatten()
        .collect();
    assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
    check_names(&all).unwrap();
    let args = Command::parse_from(["bench", "handoff", "--only", "shm_pull"]).args;
    let error = crate::tools::bench::run(args).unwrap_err().to_string();
    assert!(
        error.contains("\"shm_pull\"") && error.contains("shm_pull_apart_cpu"),
        "{error}"
    );
    let args = Command::parse_from(["bench", "handoff", "--geometry", "huge"]).args;
    assert!(
        crate::tools::bench::run(args)
            .unwrap_err()
            .to_string()
            .contains("\"huge\"")
    );
}

#[test]
fn two_thousand_tokens_of_the_usual_geometry_are_128_mib() {
    let prompt = prompt("qwq-32b-tp4", 2000u32.div_ceil(BLOCK_TOKENS));
    assert_eq!(prompt.bytes(), 128 << 20);
    for (spread, count, length) in [(Spread::Together, 128, 1 << 20), (Spread::Apart, 2048, 64 << 10)] {
        let runs = prompt.runs(spread);
        assert_eq!(runs.len(), count);
        assert!(runs.iter().all(|run| run.1 == length));
        assert!(runs.array_windows().all(|[one, next]| one.0 + one.1 < next.0));
        assert!(
            runs.last()
                .is_some_and(|last| last.0 + last.1 <= prompt.memory_bytes())
        );
    }
}
