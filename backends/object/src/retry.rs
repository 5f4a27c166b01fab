//! Trying again what the store's client doesn't: requests that may have been carried out although no answer came.

use std::time::Duration;

use kvstored_core::{ErrorKind, Result};

use crate::shared::Shared;

const MOST_ATTEMPTS: u32 = 4;
/// Pause after the first attempt; it doubles with each further one.
const FIRST_PAUSE_MS: u64 = 50;

/// Does something that may be done twice, until it's answered or a few attempts have failed. The caller has the deadline.
pub async fn retried<T, F>(shared: &Shared, work: impl Fn() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let mut attempt = 0;
    loop {
        attempt += 1;
        match work().await {
            Err(error) if error.kind() == ErrorKind::Unavailable && attempt < MOST_ATTEMPTS => {
                tracing::debug!(%error, attempt, "a request is sent again");
            }
            result => return result,
        }
        pause(shared, FIRST_PAUSE_MS << attempt).await;
    }
}

/// Waits for half of that time and up to as much again, so that those who failed together don't come back together.
pub async fn pause(shared: &Shared, milliseconds: u64) {
    let half = milliseconds / 2;
    let spread = shared.runtime.random.next_u64() % (half + 1);
    tokio::time::sleep(Duration::from_millis(half + spread)).await;
}
