//! Who may ask: the token and certificates.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use kvstored_core::{ErrorKind, Runtime};
use kvstored_master::client::blocking::MasterClient;
use kvstored_master::client::{ClientSettings, ClientTls};
use kvstored_master::server::{MasterServer, ServerSettings, ServerTls};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use super::{PATIENCE, client_settings, master_settings, server_settings, soon, until};

fn with_token(token: Option<&[u8]>, server: &MasterServer) -> MasterClient {
    let settings = ClientSettings {
        token: token.map(<[u8]>::to_vec),
        ..client_settings(server)
    };
    MasterClient::new(settings, Runtime::system()).unwrap()
}

#[test]
fn without_the_token_nothing_is_told_or_changed() {
    let settings = ServerSettings {
        token: Some(b"right".to_vec()),
        ..server_settings()
    };
    let server = MasterServer::start(settings, master_settings(), Runtime::system()).unwrap();
    for token in [None, Some(&b"wrong"[..]), Some(b"righ"), Some(b"right-and-more")] {
        let client = with_token(token, &server);
        let refused = [
            client.status(soon()).unwrap_err(),
            client.remove_all(None, true, soon()).unwrap_err(),
            client.locate(&[b"\0k"], soon()).unwrap_err(),
            client.unmount(&[1; 16], soon()).unwrap_err(),
        ];
        for error in refused {
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
        }
    }
    let client = with_token(Some(b"right"), &server);
    assert!(client.status(soon()).unwrap().leader);
    assert_eq!(client.remove_all(None, true, soon()).unwrap(), 0);
}

/// What the fast lane says to a question behind that token: the first byte behind the length.
fn lane_outcome(server: &MasterServer, token: &[u8]) -> Option<u8> {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut words = b"KVL1".to_vec();
    words.extend((token.len() as u16).to_le_bytes());
    words.extend(token);
    // whether the object "k" exists
    words.extend(b"\x05\0\0\0\x04\x0a\x02\0k");
    stream.write_all(&words).unwrap();
    let mut head = [0; 5];
    stream.read_exact(&mut head).ok()?;
    Some(head[4])
}

#[test]
fn the_fast_lane_is_for_those_with_the_token() {
    let settings = ServerSettings {
        token: Some(b"right".to_vec()),
        ..server_settings()
    };
    let server = MasterServer::start(settings, master_settings(), Runtime::system()).unwrap();
    assert_eq!(lane_outcome(&server, b"right"), Some(0));
    for token in [&b""[..], b"wrong", b"right-and-more"] {
        // an answer, or a connection that was reset before it came
        assert!(
            matches!(lane_outcome(&server, token), Some(2) | None),
            "{token:?}"
        );
    }
    until("no connections", || {
        server.connections().0 + server.connections().1 == 0
    });
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: PathBuf,
}

fn authority(folder: &Path, name: &str) -> Authority {
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let path = folder.join(format!("{name}.pem"));
    std::fs::write(&path, certificate.pem()).unwrap();
    Authority {
        issuer: Issuer::new(params, key),
        certificate: path,
    }
}

fn signed(authority: &Authority, folder: &Path, name: &str) -> (PathBuf, PathBuf) {
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &authority.issuer).unwrap();
    let paths = (
        folder.join(format!("{name}.pem")),
        folder.join(format!("{name}.key")),
    );
    std::fs::write(&paths.0, certificate.pem()).unwrap();
    std::fs::write(&paths.1, key.serialize_pem()).unwrap();
    paths
}

#[test]
fn only_certificates_of_the_authority_are_taken() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (ours, theirs) = (authority(folder, "ours"), authority(folder, "theirs"));
    let (certificate, key) = signed(&ours, folder, "server");
    let settings = ServerSettings {
        token: Some(b"right".to_vec()),
        tls: Some(ServerTls {
            certificate,
            key,
            client_authority: Some(ours.certificate.clone()),
        }),
        ..server_settings()
    };
    let server = MasterServer::start(settings, master_settings(), Runtime::system()).unwrap();
    let with = |authority: &Authority, identity: Option<(PathBuf, PathBuf)>, token: &[u8]| {
        let settings = ClientSettings {
            token: Some(token.to_vec()),
            tls: Some(ClientTls {
                authority: authority.certificate.clone(),
                identity,
                server_name: None,
            }),
            ..client_settings(&server)
        };
        MasterClient::new(settings, Runtime::system())
            .unwrap()
            .status(soon())
    };
    let mine = signed(&ours, folder, "client");
    assert!(with(&ours, Some(mine.clone()), b"right").unwrap().leader);
    assert_eq!(
        with(&ours, Some(mine.clone()), b"wrong").unwrap_err().kind(),
        ErrorKind::PermissionDenied
    );
    for (name, answer) in [
        (
            "a server of another authority",
            with(&theirs, Some(mine), b"right"),
        ),
        ("a client without a certificate", with(&ours, None, b"right")),
        (
            "a client of another authority",
            with(&ours, Some(signed(&theirs, folder, "other")), b"right"),
        ),
    ] {
        assert!(answer.is_err(), "{name} was taken");
    }
    let plain = with_token(Some(b"right"), &server).status(soon());
    assert!(plain.is_err(), "a client without TLS was taken");
}
