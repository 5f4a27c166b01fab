//! Writes `src/generated` anew from `proto/`. Needs protoc (Debian's protobuf-compiler):
//!
//! ```text
//! cargo test -p kvstored-master --features regenerate --test regenerate
//! ```
#![cfg(feature = "regenerate")]

#[test]
fn generated_code_is_written() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = root.join("src/generated");
    std::fs::create_dir_all(&out).unwrap();
    let protos = |name: &str| root.join("proto").join(name);
    tonic_prost_build::configure()
        .out_dir(&out)
        .bytes(".kvstored.master.v1")
        .build_transport(false)
        .emit_rerun_if_changed(false)
        .compile_protos(&[protos("master.proto")], &[root.join("proto")])
        .unwrap();
    tonic_prost_build::configure()
        .out_dir(&out)
        .build_server(false)
        .build_transport(false)
        .emit_rerun_if_changed(false)
        .compile_protos(&[protos("etcd.proto")], &[root.join("proto")])
        .unwrap();
}
