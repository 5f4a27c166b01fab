//! A store in memory that fails in chosen ways.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It's answered with an error.
    Error,
    /// It's never answered.
    Hang,
    /// Its answer comes late.
    Late(Duration),
    /// Its body ends in the middle, with an error.
    Cut,
    /// A bit of its body is wrong.
    Flip,
}

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    Get,
    Put,
    List,
    Delete,
}

/// The store.
#[derive(Debug, Default)]
pub struct Faulty {
    inner: InMemory,
    /// Faults of the next requests, one after the other.
    planned: Mutex<VecDeque<(Request, Fault)>>,
    /// The fault of every request.
    lasting: Mutex<Option<(Option<Request>, Fault)>>,
    pub gets: AtomicU64,
    pub puts: AtomicU64,
    pub uploads: AtomicU64,
}

impl Faulty {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The next request of that kind fails that way.
    pub fn plan(&self, request: Request, fault: Fault) {
        self.planned.lock().push_back((request, fault));
    }

    /// Every request fails that way, or none.
    pub fn always(&self, fault: Option<Fault>) {
        *self.lasting.lock() = fault.map(|fault| (None, fault));
    }

    /// Every request of that kind fails that way.
    pub fn always_for(&self, request: Request, fault: Fault) {
        *self.lasting.lock() = Some((Some(request), fault));
    }

    fn next(&self, request: Request) -> Option<Fault> {
        let mut planned = self.planned.lock();
        let at = planned.iter().position(|(kind, _)| *kind == request);
        if let Some((_, fault)) = at.and_then(|at| planned.remove(at)) {
            return Some(fault);
        }
        let lasting = self.lasting.lock();
        lasting
            .filter(|(kind, _)| kind.is_none_or(|kind| kind == request))
            .map(|(_, fault)| fault)
    }

    async fn suffer(&self, request: Request) -> Result<Option<Fault>> {
        let fault = self.next(request);
        match fault {
            Some(Fault::Error) => Err(refused()),
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Late(time)) => {
                tokio::time::sleep(time).await;
                Ok(None)
            }
            fault => Ok(fault),
        }
    }

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(work)
    }

    /// The keys below a folder of the prefix.
    pub fn keys(&self, folder: &str) -> Vec<Path> {
        let prefix = Path::from(format!("some/where/{folder}"));
        let listing = self.inner.list(Some(&prefix));
        let mut keys: Vec<Path> = Self::block_on(listing.map(|found| found.unwrap().location).collect());
        keys.sort();
        keys
    }

    /// Bytes of all objects with blocks.
    pub fn object_bytes(&self) -> u64 {
        let prefix = Path::from("some/where/objects");
        let listing = self.inner.list(Some(&prefix));
        let sizes: Vec<u64> = Self::block_on(listing.map(|found| found.unwrap().size).collect());
        sizes.iter().sum()
    }

    /// Changes an object's bytes at rest.
    pub fn change(&self, key: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        Self::block_on(async {
            let mut bytes = self.inner.get(key).await.unwrap().bytes().await.unwrap().to_vec();
            change(&mut bytes);
            self.inner.put(key, PutPayload::from(bytes)).await.unwrap();
        });
    }

    /// Puts an object past all faults.
    pub fn create(&self, key: &Path, bytes: Vec<u8>) {
        Self::block_on(self.inner.put(key, PutPayload::from(bytes))).unwrap();
    }

    pub fn delete_now(&self, key: &Path) {
        Self::block_on(self.inner.delete(key)).unwrap();
    }
}

fn refused() -> object_store::Error {
    object_store::Error::Generic {
        store: "faulty",
        source: "503 Slow Down".into(),
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("faulty")
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.suffer(Request::Put).await?;
        self.puts.fetch_add(1, Ordering::Relaxed);
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.suffer(Request::Put).await?;
        self.uploads.fetch_add(1, Ordering::Relaxed);
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let fault = self.suffer(Request::Get).await?;
        self.gets.fetch_add(1, Ordering::Relaxed);
        let found = self.inner.get_opts(location, options).await?;
        let (meta, range, attributes) = (found.meta.clone(), found.range.clone(), found.attributes.clone());
        let extensions = found.extensions.clone();
        let mut bytes = found.bytes().await?.to_vec();
        let pieces: Vec<Result<Bytes>> = match fault {
            Some(Fault::Cut) => {
                bytes.truncate(bytes.len() / 2);
                vec![Ok(bytes.into()), Err(refused())]
            }
            Some(Fault::Flip) => {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                vec![Ok(bytes.into())]
            }
            // bodies come in pieces of any size
            _ => bytes
                .chunks(7001)
                .map(|piece| Ok(Bytes::copy_from_slice(piece)))
                .collect(),
        };
        Ok(GetResult {
            payload: GetResultPayload::Stream(stream::iter(pieces).boxed()),
            meta,
            range,
            attributes,
            extensions,
        })
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        match self.next(Request::Delete) {
            None => self.inner.delete_stream(locations),
            Some(_) => locations.map(|_| Err(refused())).boxed(),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.next(Request::List) {
            None => self.inner.list(prefix),
            Some(Fault::Hang) => stream::pending().boxed(),
            Some(_) => stream::iter([Err(refused())]).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.suffer(Request::List).await?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
