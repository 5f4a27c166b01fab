//! Who lacks the token or a certificate gets nothing.

use std::path::{Path, PathBuf};

use kvstored_core::ErrorKind;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;

use super::rig::{Rig, asking, contents, listening, pattern, soon, start};
use crate::{EngineSettings, Secret, TlsSettings, TransferKind};

/// An authority, and certificates that it gives out.
struct Authority {
    folder: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = TempDir::new().unwrap();
        std::fs::write(folder.path().join("authority.pem"), issuer.pem()).unwrap();
        Self { folder, issuer }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn give_out(&self, name: &str, host: &str) -> TlsSettings {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let write = |suffix: &str, text: String| {
            let path = self.path(&format!("{name}-{suffix}.pem"));
            std::fs::write(&path, text).unwrap();
            path
        };
        TlsSettings {
            certificate: write("certificate", certificate.pem()),
            key: write("key", key.serialize_pem()),
            authority: self.path("authority.pem"),
            peer_name: None,
        }
    }
}

fn with(settings: EngineSettings, token: Option<&str>, tls: Option<TlsSettings>) -> EngineSettings {
    EngineSettings {
        token: token.map(Secret::new),
        tls,
        ..settings
    }
}

fn refusal(serving: EngineSettings, asking: EngineSettings) -> ErrorKind {
    let server = start(serving);
    let client = start(asking);
    let address = server.address().unwrap().to_string();
    client.open_peer(&address, soon()).unwrap_err().kind()
}

#[test]
fn a_wrong_or_missing_token_is_refused() {
    for (here, there) in [(Some("a"), Some("b")), (None, Some("b")), (Some("a"), None)] {
        let kind = refusal(with(listening(), there, None), with(asking(), here, None));
        assert_eq!(kind, ErrorKind::PermissionDenied, "{here:?} {there:?}");
    }
    let rig = Rig::with(
        8192,
        with(listening(), Some("a"), None),
        with(asking(), Some("a"), None),
    );
    rig.check();
}

#[test]
fn bytes_go_both_ways_over_tls() {
    let authority = Authority::new();
    let tls = || Some(authority.give_out("node", "127.0.0.1"));
    let rig = Rig::with(
        24 << 20,
        with(listening(), Some("a"), tls()),
        with(asking(), Some("a"), tls()),
    );
    let bytes = pattern(24 << 20, 3);
    rig.local.write(0, &bytes).unwrap();
    rig.run(TransferKind::Write, vec![rig.entry(0, 0, 24 << 20)])
        .unwrap();
    rig.local.write(0, &vec![0; 24 << 20]).unwrap();
    let entries = (0..24)
        .map(|index| rig.entry(index << 20, index << 20, 1 << 20))
        .collect();
    rig.run(TransferKind::Read, entries).unwrap();
    assert!(contents(&rig.local, 0, 24 << 20) == bytes);
    let entries = (0..128)
        .map(|index| rig.entry(index * 4096, index * 8192, 4096))
        .collect();
    rig.run(TransferKind::Read, entries).unwrap();
    for index in 0..128usize {
        assert!(contents(&rig.local, index as u64 * 4096, 4096) == bytes[index * 8192..][..4096]);
    }
    for _ in 0..5 {
        rig.submit(TransferKind::Read, vec![rig.entry(0, 0, 24 << 20)])
            .unwrap()
            .cancel();
        rig.submit(TransferKind::Write, vec![rig.entry(0, 0, 24 << 20)])
            .unwrap()
            .cancel();
    }
    rig.check();
    rig.server.release(rig.publication.id(), soon()).unwrap();
    assert_eq!(rig.refusal(TransferKind::Read, rig.grant), ErrorKind::Fenced);
}

#[test]
fn certificates_of_another_authority_or_name_are_refused() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let tls = || Some(ours.give_out("node", "127.0.0.1"));
    let serving = || with(listening(), None, tls());
    // one that another authority gave out, shown to ours
    let mut stranger = theirs.give_out("stranger", "127.0.0.1");
    stranger.authority = ours.path("authority.pem");
    assert_eq!(
        refusal(serving(), with(asking(), None, Some(stranger.clone()))),
        ErrorKind::PermissionDenied
    );
    assert_eq!(
        refusal(
            with(listening(), None, Some(stranger)),
            with(asking(), None, tls())
        ),
        ErrorKind::PermissionDenied
    );
    // one for another host
    let elsewhere = with(listening(), None, Some(ours.give_out("elsewhere", "10.1.2.3")));
    assert_eq!(
        refusal(elsewhere, with(asking(), None, tls())),
        ErrorKind::PermissionDenied
    );
    // the right name, where a name is configured
    let named = with(listening(), None, Some(ours.give_out("named", "node.kvstored")));
    let mut expects = ours.give_out("expects", "127.0.0.1");
    expects.peer_name = Some("node.kvstored".to_owned());
    Rig::with(8192, named, with(asking(), None, Some(expects))).check();
}

#[test]
fn one_side_without_tls_gets_nothing() {
    let authority = Authority::new();
    let tls = || Some(authority.give_out("node", "127.0.0.1"));
    let server = start(with(listening(), None, tls()));
    let address = server.address().unwrap().to_string();
    let plain = start(asking());
    assert!(plain.open_peer(&address, soon()).is_err());
    let server = start(listening());
    let address = server.address().unwrap().to_string();
    let client = start(with(asking(), None, tls()));
    assert!(client.open_peer(&address, soon()).is_err());
    start(asking())
        .open_peer(&address, soon())
        .unwrap()
        .ping(soon())
        .unwrap();
}

#[test]
fn addresses_other_than_loopback_need_a_token_and_tls() {
    let authority = Authority::new();
    let open = |token, tls| {
        let mut settings = with(listening(), token, tls);
        settings.listen = Some("0.0.0.0:0".parse().unwrap());
        crate::TransferEngine::start(settings, kvstored_core::Runtime::system())
    };
    let tls = || Some(authority.give_out("node", "127.0.0.1"));
    for (token, tls) in [(None, None), (Some("a"), None), (None, tls())] {
        let error = open(token, tls).err().expect("it must not start");
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    }
    let server = open(Some("a"), tls()).unwrap();
    let address = format!("127.0.0.1:{}", server.address().unwrap().port());
    let client = start(with(asking(), Some("a"), tls()));
    client.open_peer(&address, soon()).unwrap().ping(soon()).unwrap();
    // nor are such addresses opened
    let error = start(asking()).open_peer("192.0.2.1:1", soon()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
}

#[test]
fn files_that_are_no_certificates_are_named() {
    let authority = Authority::new();
    let good = authority.give_out("node", "127.0.0.1");
    let nonsense = authority.path("nonsense.pem");
    std::fs::write(&nonsense, "nonsense").unwrap();
    let missing = Path::new("/nonexistent/x.pem").to_owned();
    for bad in [nonsense, missing] {
        for place in 0..3 {
            let mut tls = good.clone();
            match place {
                0 => tls.certificate = bad.clone(),
                1 => tls.key = bad.clone(),
                _ => tls.authority = bad.clone(),
            }
            let settings = with(asking(), None, Some(tls));
            let error = crate::TransferEngine::start(settings, kvstored_core::Runtime::system())
                .err()
                .unwrap();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains(bad.to_str().unwrap()), "{error}");
        }
    }
}
