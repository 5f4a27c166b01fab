//! The real program: starting, being asked, being told to stop, and refusing what it can't use.
#![allow(clippy::unwrap_used, clippy::panic)] // tests, helpers included

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

fn kvstored(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvstored"));
    command
        .args(arguments)
        .env_remove("KVSTORED_LOG")
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    kvstored(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A daemon on a directory of its own; killed if a test fails before it has stopped.
struct Running {
    child: Child,
    log: BufReader<ChildStderr>,
    first_line: Value,
}

impl Running {
    fn start(directory: &Path, more: &[&str]) -> Self {
        let storage = directory.join("blocks").display().to_string();
        let listen = format!("unix:{}", directory.join("run/kvstored.sock").display());
        let mut arguments = vec![
            "--storage-backends",
            &storage,
            "--listen",
            &listen,
            "--http",
            "127.0.0.1:0",
        ];
        arguments.extend([
            "--cache-buffer-capacity",
            "16MiB",
            "--posix-capacity",
            "64MiB",
            "--log-format",
            "json",
        ]);
        arguments.extend(more);
        let mut child = kvstored(&arguments).stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let mut running = Self {
            child,
            log,
            first_line: Value::Null,
        };
        running.first_line = running.next_line();
        running
    }

    fn next_line(&mut self) -> Value {
        let mut line = String::new();
        self.log.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "the daemon ended early");
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("not JSON: {line}"))
    }

    /// All log lines up to the one with that message.
    fn until(&mut self, message: &str) -> Vec<Value> {
        let mut lines = Vec::new();
        loop {
            let line = self.next_line();
            let found = line["message"] == message;
            lines.push(line);
            if found {
                return lines;
            }
        }
    }

    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.first_line["http"].as_str().unwrap()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Tells it to stop; the exit code.
    fn stop(&mut self) -> Option<i32> {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        self.until("stopped");
        self.child.wait().unwrap().code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn it_serves_answers_and_stops_in_order_twice() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("run/kvstored.sock").display().to_string();
    for more in [
        &["--pipeline", "Cache|Posix"][..],
        &["--pipeline", "Posix", "--posix-io-engine", "psync"],
    ] {
        let mut running = Running::start(directory.path(), more);
        let first = running.first_line.clone();
        assert_eq!(first["message"], "kvstored starts");
        assert_eq!(first["pipeline"], more[1]);
        assert_eq!(first["socket"], socket.as_str());
        assert!(first["storage"].as_str().unwrap().ends_with("/blocks"));

        let lines = running.until("serving");
        let settings: Vec<&str> = lines
            .iter()
            .filter(|line| line["message"] == "setting")
            .filter_map(|line| line["name"].as_str())
            .collect();
        for name in [
            "pipeline",
            "cache_buffer_capacity",
            "posix_capacity",
            "io_direct",
            "eviction_policy",
        ] {
            assert_eq!(
                settings.iter().filter(|other| **other == name).count(),
                1,
                "{name} is said once"
            );
        }

        let ready = running.get("/readyz");
        assert!(
            ready.starts_with("HTTP/1.1 200") && ready.contains("ready"),
            "{ready}"
        );
        let metrics = running.get("/metrics");
        assert!(
            metrics.contains("kvstored_tier_capacity_bytes{tier=\"Posix\"} 67108864.0"),
            "{metrics}"
        );
        assert!(running.get("/stat").contains("\"dumped_blocks\":0"));

        let stat = run(&["ctl", "--socket", &socket, "--json", "stat"]);
        assert!(stat.status.success(), "{}", text(&stat.stderr));
        let stat: Value = serde_json::from_slice(&stat.stdout).unwrap();
        assert_eq!(stat["tiers"][1]["name"], "Posix");
        let verified = run(&["ctl", "--socket", &socket, "verify"]);
        assert!(
            verified.status.success() && text(&verified.stdout).contains("Posix"),
            "{}",
            text(&verified.stdout)
        );

        assert_eq!(running.stop(), Some(0));
        assert!(!Path::new(&socket).exists(), "the socket goes with the daemon");
        assert_eq!(run(&["ctl", "--socket", &socket, "stat"]).status.code(), Some(3));
    }
}

#[test]
fn a_second_daemon_on_the_same_socket_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut running = Running::start(directory.path(), &[]);
    running.until("serving");
    let listen = format!("unix:{}", directory.path().join("run/kvstored.sock").display());
    let second = run(&[
        "--pipeline",
        "Cache",
        "--cache-buffer-capacity",
        "1MiB",
        "--listen",
        &listen,
        "--http",
        "off",
    ]);
    assert_eq!(second.status.code(), Some(1));
    assert!(
        text(&second.stderr).contains("another daemon"),
        "{}",
        text(&second.stderr)
    );
    assert_eq!(running.stop(), Some(0));
}

#[test]
fn what_it_cannot_use_is_named_and_ends_it() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let storage = file.join("blocks").display().to_string();
    let listen = format!("unix:{}", directory.path().join("kvstored.sock").display());
    let common = ["--listen", &listen, "--cache-buffer-capacity", "1MiB", "--http"];
    for (arguments, code, word) in [
        (
            ["off", "--storage-backends", &storage].as_slice(),
            1,
            storage.as_str(),
        ),
        (&["0.0.0.0:0", "--pipeline", "Cache"], 1, "--http-allow-remote"),
        (&["off", "--pipeline", "Cash"], 2, "tier \"Cash\" is unknown"),
        (&["off", "--config", "/nowhere/at/all"], 1, "/nowhere/at/all"),
    ] {
        let output = run(&[&common[..], arguments].concat());
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?}: {}",
            text(&output.stderr)
        );
        assert!(
            text(&output.stderr).contains(word),
            "{arguments:?}: {}",
            text(&output.stderr)
        );
    }
}

#[test]
fn check_config_lists_every_problem() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ucm.yaml");
    let check = |content: &str| {
        std::fs::write(&path, content).unwrap();
        let output = run(&["check-config", &path.display().to_string()]);
        (output.status.code(), text(&output.stdout))
    };
    let good = "ucm_connectors:\n  - ucm_connector_name: \"UcmPipelineStore\"\n    ucm_connector_config:\n      \
                store_pipeline: \"Cache|Posix\"\n      storage_backends: \"/mnt/test1\"\nuse_layerwise: true\n";
    let (code, said) = check(good);
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = check(
        &good
            .replace("storage_backends", "storage_backend")
            .replace("true", "7"),
    );
    assert_eq!(code, Some(1));
    assert!(
        said.contains("did you mean storage_backends?") && said.contains("use_layerwise = 7"),
        "{said}"
    );
    assert!(said.contains("2 problems"), "{said}");

    let schema = run(&["config-schema"]);
    let schema: Value = serde_json::from_slice(&schema.stdout).unwrap();
    assert!(schema["properties"]["pipeline"].is_object());
}

#[test]
fn transfers_between_two_processes_are_measured_beside_raw_sockets() {
    let output = run(&[
        "bench",
        "transfer",
        "--json",
        "--rounds",
        "1",
        "--memory-mib",
        "16",
        "--transport",
        "tcp",
        "--only",
        "tcp_read_4KiB_x1,tcp_write_64KiB_x8_cpu",
    ]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let figures = report["results"].as_array().unwrap();
    let names: Vec<&str> = figures
        .iter()
        .filter_map(|figure| figure["name"].as_str())
        .collect();
    assert_eq!(
        names,
        [
            "tcp_read_4KiB_x1",
            "tcp_read_4KiB_x1_p50",
            "tcp_read_4KiB_x1_p99",
            "tcp_read_4KiB_x1_cpu",
            "tcp_read_4KiB_x1_cpu_requester",
            "tcp_read_4KiB_x1_cpu_server",
            "tcp_write_64KiB_x8_cpu",
        ]
    );
    for figure in figures {
        assert!(figure["value"].as_f64().unwrap() > 0.0, "{figure}");
        assert!(figure["limit"].as_f64().unwrap() > 0.0, "{figure}");
    }
}

#[test]
fn a_proxy_starts_and_stops_in_order() {
    let mut child = kvstored(&[
        "proxy",
        "--port",
        "0",
        "--prefiller-ports",
        "9",
        "--decoder-ports",
        "9",
    ])
    .stderr(Stdio::piped())
    .spawn()
    .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut until = |message: &str| {
        let mut line = String::new();
        while !line.contains(message) {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "the proxy ended early");
        }
    };
    until("proxy starts");
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    until("stopped");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_proxy_with_unequal_lists_names_the_flags() {
    let failed = run(&["proxy", "--decoder-hosts", "a", "b", "--decoder-ports", "9000"]);
    assert_eq!(failed.status.code(), Some(1));
    let message = text(&failed.stderr);
    for part in ["--decoder-hosts", "a b", "--decoder-ports", "9000"] {
        assert!(message.contains(part), "{part} in {message}");
    }
}

#[test]
fn a_prompt_is_handed_over_between_two_processes_and_measured() {
    for extra in [&[][..], &["--registered"], &["--no-verify"]] {
        let mut arguments = vec!["bench", "handoff", "--geometry", "tiny", "--tokens", "500"];
        arguments.extend(["--rounds", "1", "--transport", "tcp", "--json"]);
        arguments.extend(extra);
        let output = run(&arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let results = report["results"].as_array().unwrap();
        let names: Vec<&str> = results.iter().map(|row| row["name"].as_str().unwrap()).collect();
        assert!(
            names.contains(&"tcp_pull_together") && names.contains(&"tcp_pull_apart_release"),
            "{names:?}"
        );
        for row in results.iter().filter(|row| row["unit"] == "GB/s") {
            assert!(
                row["value"].as_f64().unwrap() > 0.0 && row["ratio"].as_f64().unwrap() > 0.0,
                "{row}"
            );
        }
    }
}
