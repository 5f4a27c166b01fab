//! The small files of a storage directory: who owns a writer's folder, and what a namespace stands for.
#![no_main]

use kvstored_backends::posix::format::WriterId;
use kvstored_backends::posix::format::manifest::Manifest;
use kvstored_backends::posix::format::owner::{OWNER_BYTES, Owner};
use kvstored_core::Namespace;
use kvstored_core::envelope::header_checksum;
use libfuzzer_sys::fuzz_target;

const VARIABLE_OFFSET: usize = 10;

fuzz_target!(|bytes: &[u8]| {
    owner_round_trip(bytes);
    // no fuzzer guesses a checksum: put in the right one, so that the fields behind it are reached
    let empty = Owner {
        epoch: 0,
        writer: WriterId([0; 16]),
        process_id: 0,
        boot_id: [0; 16],
        unix_us: 0,
        host: String::new(),
    };
    let mut file = empty.encode();
    let end = OWNER_BYTES - 4;
    let length = bytes.len().min(end - VARIABLE_OFFSET);
    file[VARIABLE_OFFSET..VARIABLE_OFFSET + length].copy_from_slice(&bytes[..length]);
    let checksum = header_checksum(&[&file[..end]]);
    file[end..].copy_from_slice(&checksum.to_le_bytes());
    owner_round_trip(&file);
    manifest_round_trip(bytes);
});

fn owner_round_trip(bytes: &[u8]) {
    let Ok(owner) = Owner::decode(bytes) else { return };
    let again = Owner::decode(&owner.encode()).expect("an encoded owner decodes");
    // a host name that isn't UTF-8 may lose its end when its replacement characters no longer fit
    assert_eq!(
        Owner {
            host: owner.host.clone(),
            ..again
        },
        owner
    );
}

fn manifest_round_trip(bytes: &[u8]) {
    let namespace = Namespace([0; 32]);
    let Ok(manifest) = Manifest::decode(&namespace, bytes) else {
        return;
    };
    let again = manifest.encode().expect("a decoded manifest encodes");
    assert_eq!(
        Manifest::decode(&namespace, &again).expect("an encoded manifest decodes"),
        manifest
    );
}
