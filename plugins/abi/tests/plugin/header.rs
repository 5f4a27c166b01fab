//! The header and the Rust declarations say the same.

use std::fmt::Write as _;
use std::mem::offset_of;
use std::process::Command;

use kvstored_plugin::{Kind, Level, abi};

use crate::support::plugins;

macro_rules! structs {
    ($($c:literal = $rust:ty { $($field:ident),+ $(,)? })+) => {
        fn expected() -> String {
            let mut text = String::new();
            $(
                writeln!(text, "{} {}", $c, size_of::<$rust>()).unwrap();
                $(writeln!(text, "{}.{} {}", $c, stringify!($field), offset_of!($rust, $field)).unwrap();)+
            )+
            text
        }

        fn program() -> String {
            let mut text = String::new();
            $(
                writeln!(text, r#"printf("{0} %zu\n", sizeof({0}));"#, $c).unwrap();
                $(writeln!(text, r#"printf("{0}.{1} %zu\n", offsetof({0}, {1}));"#, $c, stringify!($field)).unwrap();)+
            )+
            text
        }
    };
}

structs! {
    "kvstored_text" = abi::Text { data, length }
    "kvstored_hash" = abi::Hash { bytes, length, reserved }
    "kvstored_key" = abi::Key { namespace_digest, hash }
    "kvstored_setting" = abi::Setting { key, value }
    "kvstored_namespace" = abi::Namespace {
        struct_size, shards, digest, image_bytes, payload_bytes, tenant, model, description
    }
    "kvstored_memory" = abi::Memory { struct_size, file, id, base, length }
    "kvstored_operation" = abi::Operation {
        struct_size, action, ticket, key, data, length, durability, reserved, memory
    }
    "kvstored_statistics" = abi::Statistics {
        struct_size, degraded, allocated_bytes, capacity_bytes, read_bytes, written_bytes, evicted_blocks,
        refused_writes
    }
    "kvstored_host" = abi::Host { struct_size, abi_version, context, log, complete, stored, removed, describe }
    "kvstored_tier" = abi::Tier {
        struct_size, keeps, open, open_namespace, submit, remove, purge, statistics, drain, close
    }
    "kvstored_copy" = abi::Copy { destination, source, bytes }
    "kvstored_device_statistics" = abi::DeviceStatistics {
        struct_size, reserved, batch_calls, single_calls, copies, copied_bytes
    }
    "kvstored_device" = abi::Device {
        struct_size, reserved, open, close, last_error, bind_thread, memory, allocate, release, register_host,
        unregister_host, create_stream, destroy_stream, copy, synchronize_stream, abort_stream, create_event,
        destroy_event, record_event, wait_event, query_event, synchronize_event, export_memory, import_memory,
        close_import, statistics
    }
    "kvstored_move" = abi::Move { local, remote, bytes }
    "kvstored_transport" = abi::Transport {
        struct_size, reserved, open, close, last_error, address, register_memory, unregister_memory, connect,
        disconnect, submit
    }
    "kvstored_plugin" = abi::Plugin { struct_size, abi_version, name, version, tier, device, transport }
}

const CONSTANTS: [(&str, u64); 39] = [
    ("KVSTORED_FROM_PEER", abi::FROM_PEER as u64),
    ("KVSTORED_TO_PEER", abi::TO_PEER as u64),
    ("KVSTORED_EXPOSED_TO_NOBODY", abi::EXPOSED_TO_NOBODY as u64),
    ("KVSTORED_EXPOSED_TO_PEERS", abi::EXPOSED_TO_PEERS as u64),
    ("KVSTORED_MOST_ADDRESS_BYTES", abi::MOST_ADDRESS_BYTES as u64),
    ("KVSTORED_ABI_VERSION", abi::ABI_VERSION as u64),
    ("KVSTORED_OK", abi::OK as u64),
    ("KVSTORED_INVALID_INPUT", Kind::InvalidInput as u64),
    ("KVSTORED_NOT_FOUND", Kind::NotFound as u64),
    ("KVSTORED_ALREADY_EXISTS", Kind::AlreadyExists as u64),
    ("KVSTORED_MISMATCH", Kind::Mismatch as u64),
    ("KVSTORED_BUSY", Kind::Busy as u64),
    ("KVSTORED_TOO_LARGE", Kind::TooLarge as u64),
    ("KVSTORED_NO_SPACE", Kind::NoSpace as u64),
    ("KVSTORED_QUOTA_EXCEEDED", Kind::QuotaExceeded as u64),
    ("KVSTORED_CORRUPT", Kind::Corrupt as u64),
    ("KVSTORED_TIMED_OUT", Kind::TimedOut as u64),
    ("KVSTORED_CANCELLED", Kind::Cancelled as u64),
    ("KVSTORED_UNAVAILABLE", Kind::Unavailable as u64),
    ("KVSTORED_FENCED", Kind::Fenced as u64),
    ("KVSTORED_UNSUPPORTED", Kind::Unsupported as u64),
    ("KVSTORED_PERMISSION_DENIED", Kind::PermissionDenied as u64),
    ("KVSTORED_IO", Kind::Io as u64),
    ("KVSTORED_INTERNAL", Kind::Internal as u64),
    ("KVSTORED_READ", abi::READ as u64),
    ("KVSTORED_WRITE", abi::WRITE as u64),
    ("KVSTORED_MEMORY", abi::MEMORY as u64),
    ("KVSTORED_TIER", abi::TIER as u64),
    ("KVSTORED_DURABLE", abi::DURABLE as u64),
    ("KVSTORED_LOG_ERROR", Level::Error as u64),
    ("KVSTORED_LOG_WARNING", Level::Warning as u64),
    ("KVSTORED_LOG_INFO", Level::Info as u64),
    ("KVSTORED_LOG_DEBUG", Level::Debug as u64),
    ("KVSTORED_HOST_TO_DEVICE", abi::HOST_TO_DEVICE as u64),
    ("KVSTORED_DEVICE_TO_HOST", abi::DEVICE_TO_HOST as u64),
    ("KVSTORED_DEVICE_TO_DEVICE", abi::DEVICE_TO_DEVICE as u64),
    ("KVSTORED_MOST_KEY_BYTES", abi::MOST_KEY_BYTES as u64),
    ("sizeof(void *)", 8),
    ("sizeof(int)", 4),
];

#[test]
fn header_and_rust_agree() {
    let mut source = String::from(
        "#include <stddef.h>\n#include <stdio.h>\n#include \"kvstored_plugin.h\"\nint main(void) {\n",
    );
    source += &program();
    let mut expected = expected();
    for (name, value) in CONSTANTS {
        writeln!(
            source,
            r#"printf("%s %llu\n", "{name}", (unsigned long long)({name}));"#
        )
        .unwrap();
        writeln!(expected, "{name} {value}").unwrap();
    }
    source += "return 0;\n}\n";
    let directory = tempfile::tempdir().unwrap();
    let (file, built) = (directory.path().join("sizes.c"), directory.path().join("sizes"));
    std::fs::write(&file, source).unwrap();
    let done = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Werror", "-pedantic", "-I"])
        .arg(plugins().join("abi/include"))
        .arg(&file)
        .arg("-o")
        .arg(&built)
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let printed = Command::new(&built).output().unwrap().stdout;
    assert_eq!(String::from_utf8(printed).unwrap(), expected);
}

#[test]
fn the_document_says_the_same() {
    let guide = std::fs::read_to_string(plugins().join("../docs/plugin-abi.md")).unwrap();
    let mut said = String::new();
    for row in guide.lines().filter(|line| line.starts_with("| `kvstored_")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let name = cells[1].trim_matches('`');
        writeln!(said, "{name} {}", cells[2]).unwrap();
        for field in cells[3].split(", ") {
            let (field, offset) = field.split_once(' ').unwrap();
            let field = field.trim_matches('`').split('[').next().unwrap();
            writeln!(said, "{name}.{field} {offset}").unwrap();
        }
    }
    assert_eq!(said, expected());
}

#[test]
fn statuses_are_the_kinds_of_the_core() {
    use kvstored_core::ErrorKind;
    for (kind, status) in ErrorKind::ALL.iter().zip(1u64..) {
        let name = format!("KVSTORED_{}", kind.name().to_uppercase());
        assert!(
            CONSTANTS.contains(&(name.as_str(), status)),
            "{name} is not {status}"
        );
    }
}
