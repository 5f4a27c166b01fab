//! The client of an S3 service from settings and environment, and its errors in our words.

use std::sync::Arc;
use std::time::Duration;

use kvstored_core::{Error, ErrorKind, Result};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::{BackoffConfig, ClientConfigKey, RetryConfig};

use crate::settings::S3Settings;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection on which nothing came for so long is given up.
const SILENCE: Duration = Duration::from_secs(10);
/// Connections that are kept for later.
const IDLE_CONNECTIONS: usize = 64;
const MOST_RETRIES: usize = 5;

/// A client for the settings' bucket; credentials, and what the settings leave open, come from the environment's `AWS_`
/// variables. Nothing is sent yet. Fails with `InvalidInput`.
pub fn connect(settings: &S3Settings) -> Result<Arc<AmazonS3>> {
    // the client asks the process for its cryptography; whoever chose first is heard
    let _ = rustls::crypto::ring::default_provider().install_default();
    let text = |time: Duration| format!("{}ms", time.as_millis());
    let mut builder = AmazonS3Builder::from_env().with_bucket_name(&settings.bucket);
    for (key, value) in [
        (ClientConfigKey::ConnectTimeout, text(CONNECT_TIMEOUT)),
        (ClientConfigKey::ReadTimeout, text(SILENCE)),
        // so that one that hangs leaves time for another
        (ClientConfigKey::Timeout, text(settings.write_timeout / 3)),
        (ClientConfigKey::PoolMaxIdlePerHost, IDLE_CONNECTIONS.to_string()),
    ] {
        builder = builder.with_config(AmazonS3ConfigKey::Client(key), value);
    }
    if settings.allow_http {
        builder = builder.with_allow_http(true);
    }
    builder = builder.with_retry(RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(50),
            max_backoff: Duration::from_secs(2),
            base: 2.0,
        },
        max_retries: MOST_RETRIES,
        retry_timeout: settings.write_timeout,
    });
    if let Some(endpoint) = &settings.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(region) = &settings.region {
        builder = builder.with_region(region);
    }
    let store = builder.build().map_err(|error| {
        Error::invalid(format!("no S3 client can be made: {error}")).with("s3_bucket", &settings.bucket)
    })?;
    Ok(Arc::new(store))
}

/// A store's error by what the caller can do about it.
pub fn failure(error: object_store::Error, path: &object_store::path::Path) -> Error {
    use object_store::Error as Store;
    let kind = match &error {
        Store::NotFound { .. } => ErrorKind::NotFound,
        Store::AlreadyExists { .. } | Store::Precondition { .. } => ErrorKind::AlreadyExists,
        Store::PermissionDenied { .. } | Store::Unauthenticated { .. } => ErrorKind::PermissionDenied,
        Store::NotSupported { .. } | Store::NotImplemented { .. } => ErrorKind::Unsupported,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, error.to_string()).with("path", path)
}

/// The error of a deadline that passed.
pub fn late(what: &str) -> Error {
    Error::new(ErrorKind::TimedOut, format!("{what} took too long"))
}
