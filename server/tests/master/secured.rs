//! A pool whose connections are encrypted on both sides, with a token.

use std::time::Duration;

use kvstored_core::{ErrorKind, Runtime};
use kvstored_master::client::blocking::MasterClient;
use kvstored_master::client::{ClientSettings, ClientTls};

use super::certificates::{authority, certificate, give_out, key};
use super::member::{Member, Plan, TOKEN};
use super::process::{Master, kvstored};
use super::{settings, soon};

#[test]
fn a_pool_over_mutual_tls() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    give_out(folder, &["master", "first", "second"]);
    let token = folder.join("token");
    std::fs::write(&token, TOKEN).unwrap();
    let text = |path: std::path::PathBuf| path.to_str().unwrap().to_owned();
    let (token, ca) = (text(token), text(authority(folder)));
    let (certified, certified_key) = (text(certificate(folder, "master")), text(key(folder, "master")));
    let master = Master::start(&[
        "--token_file",
        &token,
        "--tls_certificate",
        &certified,
        "--tls_key",
        &certified_key,
        "--tls_authority",
        &ca,
    ]);
    let member = |name| {
        Member::start(&Plan {
            master: &master.address,
            lends: 16 << 20,
            name,
            transport: "tcp",
            tls: Some(folder),
        })
    };
    let (mut first, mut second) = (member("first"), member("second"));
    let nodes = [first.node.clone(), second.node.clone()];
    for (number, node) in nodes.iter().enumerate() {
        let number = number as u64;
        assert_eq!(first.put(number, 1 << 20, 1, node), "ok");
        for reader in [&mut first, &mut second] {
            assert_eq!(reader.get(number, 1 << 20, Duration::from_secs(10)).0, "ok");
        }
    }

    let tls = |identity| ClientTls {
        authority: authority(folder),
        identity,
        server_name: None,
    };
    let mine = (certificate(folder, "first"), key(folder, "first"));
    let ask = |token: &str, tls: Option<ClientTls>| {
        let settings = ClientSettings {
            token: Some(token.as_bytes().to_vec()),
            tls,
            ..settings(&[&master.address])
        };
        MasterClient::new(settings, Runtime::system())
            .unwrap()
            .exist(&[&super::key("0")], false, soon())
    };
    assert!(ask(TOKEN, Some(tls(Some(mine.clone())))).unwrap()[0].is_some());
    let wrong = ask("wrong", Some(tls(Some(mine)))).unwrap_err();
    assert_eq!(wrong.kind(), ErrorKind::PermissionDenied);
    assert!(ask(TOKEN, Some(tls(None))).is_err(), "without a certificate");
    assert!(ask(TOKEN, None).is_err(), "without TLS");

    let ctl = |flags: &[&str]| {
        let mut arguments = vec!["ctl", "pool", "stat", "--master", &master.address];
        arguments.extend(flags);
        kvstored(&arguments).output().unwrap().status.success()
    };
    let (own, own_key) = (text(certificate(folder, "second")), text(key(folder, "second")));
    let with_all = [
        "--token-file",
        &token,
        "--tls-authority",
        &ca,
        "--tls-certificate",
        &own,
        "--tls-key",
        &own_key,
    ];
    assert!(ctl(&with_all));
    assert!(!ctl(&with_all[..4]) && !ctl(&with_all[..2]));
    assert!(first.leave() && second.leave());
    assert!(master.terminate());
}
