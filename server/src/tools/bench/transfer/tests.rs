use std::collections::HashSet;

use clap::Parser;

use super::cases::{Direction, check_names, wanted};
use super::*;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    args: crate::tools::bench::Args,
}

#[test]
fn cases_have_different_names_and_the_required_ones_are_there() {
    let all: Vec<Case> = Transport::ALL
        .into_iter()
        .flat_map(|transport| Case::all(transport, true))
        .collect();
    let every: HashSet<String> = all.iter().flat_map(names).collect();
    assert_eq!(every.len(), all.len() * 6);
    for required in [
        "tcp_read_1MiB_x32",
        "tcp_write_1MiB_x32",
        "tcp_read_1MiB_x32_cpu",
        "tcp_read_4KiB_x1_p50",
        "shm_read_4KiB_x1_p50",
        "shm_write_4KiB_x1",
        "shm_read_1MiB_x32",
        "rdma_read_16MiB_x128_p99",
    ] {
        assert!(every.contains(required), "{required}");
    }
    let usual: HashSet<Case> = Case::all(Transport::Tcp, false).into_iter().collect();
    assert_eq!(usual.len(), 40);
    assert!(usual.is_subset(&all.into_iter().collect()));
}

#[test]
fn names_on_the_command_line_are_checked() {
    let check = |name: &str| check_names(&[name.to_owned()], &["tcp_idle_cpu_percent".to_owned()]);
    for good in [
        "tcp_read_1MiB_x32",
        "shm_write_256KiB_x8_cpu_server",
        "tcp_idle_cpu_percent",
    ] {
        check(good).unwrap();
    }
    for bad in [
        "tcp_read_1MiB_x3",
        "tcp_read_1MiB_x32_p5",
        "tcp_read_1MiB_x32cpu",
        "",
        "speed",
    ] {
        assert!(
            check(bad)
                .unwrap_err()
                .to_string()
                .contains(&format!("\"{bad}\""))
        );
    }
    assert!(wanted(&[], "a", "a_p50"));
    let only = ["a".to_owned(), "b_p99".to_owned()];
    assert!(wanted(&only, "a", "a_p50") && wanted(&only, "b", "b_p99"));
    assert!(!wanted(&only, "b", "b") && !wanted(&only, "c", "c"));
}

#[test]
fn the_flags_of_the_other_bench_are_as_they_were() {
    let args = Command::parse_from(["bench", "--geometry", "tiny", "--json", "--only", "load_cache"]).args;
    assert!(args.other.is_none() && args.json && args.geometry.as_deref() == Some("tiny"));
    let args = Command::parse_from([
        "bench",
        "transfer",
        "--transport",
        "shm",
        "--json",
        "--rounds",
        "2",
    ])
    .args;
    let Some(crate::tools::bench::Other::Transfer(args)) = args.other else {
        panic!("no transfer");
    };
    assert_eq!(
        (args.transport, args.json, args.rounds),
        (Some(Transport::Shm), true, 2)
    );
    assert!(Command::try_parse_from(["bench", "transfer", "--transport", "pigeon"]).is_err());
    assert!(Command::try_parse_from(["bench", "--json", "transfer"]).is_err());
}

#[test]
fn an_unknown_figure_is_named() {
    let args = Command::parse_from(["bench", "transfer", "--only", "tcp_read_5MiB_x1"]).args;
    let error = crate::tools::bench::run(args).unwrap_err().to_string();
    assert!(error.contains("tcp_read_5MiB_x1"), "{error}");
}

#[test]
fn entries_lie_beside_one_another_or_share_places() {
    assert_eq!(places(10, 3, 100).collect::<Vec<_>>(), [0, 10, 20]);
    assert_eq!(places(40, 5, 100).collect::<Vec<_>>(), [0, 40, 0, 40, 0]);
    assert_eq!(places(100, 2, 100).collect::<Vec<_>>(), [0, 0]);
}

#[test]
fn a_cases_figures_carry_their_units_and_their_limit() {
    let case = Case {
        transport: Transport::Tcp,
        direction: Direction::Read,
        bytes: 1 << 20,
        entries: 32,
    };
    let samples = Samples::take_each(1, |side| {
        Ok(if side == Side::Ours {
            [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
        } else {
            [2.0; 6]
        })
    })
    .unwrap();
    let figures = figures_of(&case, &samples, Some("raw"));
    let shown: Vec<(&str, f64, &str)> = figures
        .iter()
        .map(|figure| (figure.name.as_ref(), figure.value, figure.unit))
        .collect();
    assert_eq!(shown[0], ("tcp_read_1MiB_x32", 1.0, "GB/s"));
    assert_eq!(shown[2], ("tcp_read_1MiB_x32_p99", 3.0, "us"));
    assert_eq!(shown[5], ("tcp_read_1MiB_x32_cpu_server", 6.0, "s/GB"));
    assert!(figures.iter().all(|figure| figure.note.ends_with("limit: raw")));
    let json = serde_json::to_value(&figures).unwrap();
    assert_eq!(json[0]["ratio"], 0.5);
    let alone = Samples::each_alone(2, || Ok([1.0; 6])).unwrap();
    assert!(
        figures_of(&case, &alone, None)
            .iter()
            .all(|figure| figure.limit.is_none())
    );
}
