use super::*;
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
