//! Parts of uploads that nobody will finish: of processes that died while they stored. They can't be seen as objects, but
//! they take room in the bucket.

use std::sync::Arc;
use std::time::Duration;

use kvstored_core::{Error, ErrorKind, Result};
use object_store::aws::AmazonS3;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::signer::{Method, SignedUrlOptions, Signer};

use crate::paths::Kind;
use crate::shared::Shared;
use crate::store::failure;

/// An upload whose object's name is so old has no writer any more: far longer than an upload may take.
const LIFETIME: Duration = Duration::from_hours(24);
/// The longest answer that is read.
const MOST_ANSWER_BYTES: usize = 8 << 20;
/// Listings at one time. Each shows up to a thousand uploads, the oldest first.
const MOST_PAGES: usize = 10;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// What finds uploads. The store's own interface can't list them.
pub struct Uploads {
    store: Arc<AmazonS3>,
    client: reqwest::Client,
}

/// An upload that hasn't been completed.
#[derive(Debug, PartialEq, Eq)]
struct Unfinished {
    key: String,
    id: String,
}

impl Uploads {
    /// Of that store. Fails with `InvalidInput` where no client can be made.
    pub fn new(store: Arc<AmazonS3>) -> Result<Self> {
        let client = reqwest::Client::builder().timeout(REQUEST_TIMEOUT).build();
        let client =
            client.map_err(|error| Error::invalid(format!("no HTTP client can be made: {error}")))?;
        Ok(Self { store, client })
    }

    /// Takes back what is too old to be finished. Returns how many uploads that were.
    pub async fn clean_up(&self, shared: &Shared) -> Result<usize> {
        let oldest = shared.now_us().saturating_sub(LIFETIME.as_micros() as u64);
        let mut total = 0;
        for _ in 0..MOST_PAGES {
            let mut aborted = 0;
            for upload in self.list(shared).await? {
                let Ok(path) = Path::parse(&upload.key) else {
                    continue;
                };
                if matches!(shared.paths.kind(&path), Kind::Object(name) if name.generation < oldest) {
                    let abort = self.store.abort_multipart(&path, &upload.id).await;
                    abort.map_err(|error| failure(error, &path))?;
                    aborted += 1;
                }
            }
            total += aborted;
            if aborted == 0 {
                break;
            }
        }
        Ok(total)
    }

    async fn list(&self, shared: &Shared) -> Result<Vec<Unfinished>> {
        let root = shared.paths.root();
        let prefix = if root.as_ref().is_empty() {
            String::new()
        } else {
            format!("{root}/")
        };
        let query = [("uploads", ""), ("max-uploads", "1000"), ("prefix", &prefix)];
        let options = SignedUrlOptions::new().with_query(query);
        let url = self
            .store
            .signed_url_opts(Method::GET, &Path::default(), REQUEST_TIMEOUT * 2, &options)
            .await
            .map_err(|error| failure(error, root))?;
        let failed = |error: reqwest::Error| {
            // its address carries a signature
            let what = format!("unfinished uploads can't be listed: {}", error.without_url());
            Error::new(ErrorKind::Unavailable, what)
        };
        let answer = self.client.get(url).send().await.map_err(failed)?;
        let mut answer = answer.error_for_status().map_err(failed)?;
        let mut text = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(failed)? {
            if text.len() + piece.len() > MOST_ANSWER_BYTES {
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    "a listing of uploads doesn't end",
                ));
            }
            text.extend_from_slice(&piece);
        }
        Ok(unfinished(&String::from_utf8_lossy(&text)))
    }
}

/// The uploads in an answer to `ListMultipartUploads`.
fn unfinished(answer: &str) -> Vec<Unfinished> {
    let mut rest = answer;
    let mut found = Vec::new();
    while let Some((upload, after)) = element(rest, "Upload") {
        rest = after;
        if let (Some((key, _)), Some((id, _))) = (element(upload, "Key"), element(upload, "UploadId")) {
            found.push(Unfinished {
                key: unescaped(key),
                id: unescaped(id),
            });
        }
    }
    found
}

/// The text of the first element of that name, and what follows it.
fn element<'a>(text: &'a str, name: &str) -> Option<(&'a str, &'a str)> {
    let (_, inside) = text.split_once(&format!("<{name}>"))?;
    inside.split_once(&format!("</{name}>"))
}

fn unescaped(text: &str) -> String {
    let quotes = text
        .replace("&quot;", "\"")
        .replace("&#34;", "\"")
        .replace("&apos;", "'");
    quotes
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&amp;", "&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uploads_are_found_in_an_answer() {
        let answer = "<?xml version=\"1.0\"?><ListMultipartUploadsResult><Bucket>b</Bucket><Upload><Key>a/objects/x&amp;y</Key>\
            <UploadId>one</UploadId><Initiated>2026-01-01T00:00:00Z</Initiated></Upload><Upload><UploadId>two</UploadId>\
            <Key>z</Key></Upload><Upload><Key>no id</Key></Upload></ListMultipartUploadsResult>";
        let found = unfinished(answer);
        let pairs: Vec<_> = found
            .iter()
            .map(|upload| (upload.key.as_str(), upload.id.as_str()))
            .collect();
        assert_eq!(pairs, [("a/objects/x&y", "one"), ("z", "two")]);
        assert!(unfinished("<Upload><Key>cut").is_empty());
    }
}
