//! What namespaces stand for, kept in the bucket beside the blocks.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use kvstored_backends::posix::format::manifest::{MAX_MANIFEST_BYTES, Manifest};
use kvstored_core::{Error, ErrorKind, Namespace, NamespaceInfo, Result};
use object_store::{ObjectStoreExt, PutMode, PutOptions, PutPayload};
use parking_lot::Mutex;

use crate::shared::Shared;
use crate::store::failure;

/// Manifests of namespaces.
#[derive(Default)]
pub struct Namespaces {
    stored: Mutex<HashSet<Namespace>>,
    known: Mutex<HashMap<Namespace, Arc<NamespaceInfo>>>,
}

impl Namespaces {
    /// Makes a namespace known in this process.
    pub fn learn(&self, info: &Arc<NamespaceInfo>) {
        self.known
            .lock()
            .entry(info.namespace)
            .or_insert_with(|| Arc::clone(info));
    }

    /// What is known of a namespace.
    pub fn get(&self, namespace: &Namespace) -> Option<Arc<NamespaceInfo>> {
        self.known.lock().get(namespace).cloned()
    }

    /// Puts a namespace's manifest into the bucket, unless this process knows that it's there.
    pub async fn store(&self, shared: &Shared, info: &Arc<NamespaceInfo>) -> Result<()> {
        if self.stored.lock().contains(&info.namespace) {
            return Ok(());
        }
        let path = shared.paths.namespace(&info.namespace);
        let manifest = Manifest {
            info: Some(Arc::clone(info)),
            purged_generation: 0,
        };
        let body = PutPayload::from(manifest.encode()?);
        let options = PutOptions::from(PutMode::Create);
        if let Err(error) = shared.store.put_opts(&path, body, options).await {
            let error = failure(error, &path);
            // the digest in its name says what is in it, so whoever put it put the same
            if error.kind() != ErrorKind::AlreadyExists {
                return Err(error);
            }
        }
        self.stored.lock().insert(info.namespace);
        Ok(())
    }

    /// Reads a namespace's manifest. Fails with `NotFound`, `Corrupt` and as the store does.
    pub async fn fetch(&self, shared: &Shared, namespace: &Namespace) -> Result<Arc<NamespaceInfo>> {
        if let Some(known) = self.get(namespace) {
            return Ok(known);
        }
        let path = shared.paths.namespace(namespace);
        let found = shared
            .store
            .get(&path)
            .await
            .map_err(|error| failure(error, &path))?;
        if found.meta.size > MAX_MANIFEST_BYTES {
            let what = format!("a manifest of {} bytes", found.meta.size);
            return Err(Error::new(ErrorKind::Corrupt, what).with("path", path));
        }
        let bytes = found.bytes().await.map_err(|error| failure(error, &path))?;
        let info = Manifest::decode(namespace, &bytes)?.info;
        let info = info.ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, "a manifest that doesn't give its namespace").with("path", path)
        })?;
        self.stored.lock().insert(*namespace);
        self.learn(&info);
        Ok(info)
    }
}
