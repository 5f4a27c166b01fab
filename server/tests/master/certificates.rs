//! An authority, and certificates that it gives out.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

/// Writes an authority's certificate to the folder, and one of its own for each name.
pub fn give_out(folder: &Path, names: &[&str]) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    std::fs::write(authority(folder), issuer.pem()).unwrap();
    for name in names {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let signed = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(certificate(folder, name), signed.pem()).unwrap();
        std::fs::write(self::key(folder, name), key.serialize_pem()).unwrap();
    }
}

pub fn authority(folder: &Path) -> PathBuf {
    folder.join("authority.pem")
}

pub fn certificate(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.pem"))
}

pub fn key(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.key"))
}
