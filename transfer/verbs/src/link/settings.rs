//! How links are set up: plain data.

use std::time::Duration;

use kvstored_core::{Error, ErrorKind, Result};

use crate::address::{LEAST_RECEIVES, MOST_RECEIVES};
use crate::sys::Limits;

/// How a link is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkSettings {
    /// Requests that are with the peer at once, and requests of the peer's that are served at once.
    pub window: u16,
    /// Receives that are posted; the peer never sends more than that without being told of new ones.
    pub receives: u16,
    /// RDMA operations under way at once for the peer's requests.
    pub moves: u16,
    /// Bytes of one of them. Whether the memory may still be touched is checked before each.
    pub chunk_bytes: u32,
    /// Requests that may wait, those with the peer included; past that, submitting answers `Busy`.
    pub queue_depth: usize,
    /// A peer that says nothing for so long while something is asked of it is given up.
    pub silence: Duration,
    /// How long the peer may take to stop what isn't wanted any more, before its access is cut off.
    pub grace: Duration,
}

impl Default for LinkSettings {
    fn default() -> Self {
        Self {
            window: 64,
            receives: 192,
            moves: 8,
            chunk_bytes: 1 << 20,
            queue_depth: 65_536,
            silence: Duration::from_secs(5),
            grace: Duration::from_millis(100),
        }
    }
}

impl LinkSettings {
    /// Messages that are being sent at once.
    pub(super) fn messages(&self) -> u16 {
        self.window.saturating_mul(2).saturating_add(8)
    }

    /// Send requests posted at once: messages, a binding and an invalidation for each request, and moves.
    pub(super) fn sends(&self) -> u32 {
        u32::from(self.messages()) + 2 * u32::from(self.window) + u32::from(self.moves)
    }

    /// How often a packet's acknowledgement is waited for, as verbs count it: such that a peer that is gone is noticed after
    /// 7 times that, well within the time of silence.
    pub(super) fn packet_timeout(&self) -> u8 {
        const UNIT_NS: u128 = 4096;
        let each = self.silence.as_nanos() / 2 / 8;
        // 2^14 units are 67 ms, the usual; below 2^10, 4 ms, a busy peer would be taken for a dead one
        let fits = (10..=14).rev().find(|exponent| UNIT_NS << exponent <= each);
        fits.unwrap_or(10)
    }

    /// Fails with `InvalidInput` for what makes no sense, and `Unavailable` for what the device can't do.
    pub(super) fn check(&self, limits: &Limits) -> Result<()> {
        let wrong = |what: &str| Err(Error::invalid(format!("{what} of an RDMA link is out of range")));
        if self.window == 0 || self.window > 4096 {
            return wrong("window");
        }
        if !(LEAST_RECEIVES..=MOST_RECEIVES).contains(&self.receives) {
            return wrong("receives");
        }
        if self.moves == 0 || self.moves > 1024 {
            return wrong("moves");
        }
        if self.chunk_bytes < 4096 || self.chunk_bytes > 1 << 30 {
            return wrong("chunk_bytes");
        }
        if self.queue_depth == 0 || self.silence < Duration::from_millis(50) || self.grace.is_zero() {
            return wrong("queue_depth, silence or grace");
        }
        let all = self.sends() + u32::from(self.receives);
        let most = limits.work_requests.min(limits.completions);
        if all > most {
            return Err(Error::new(
                ErrorKind::Unavailable,
                format!("an RDMA link needs {all} work requests, and the device has {most}"),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_peer_is_noticed_within_the_silence() {
        for (silence_ms, exponent) in [(50, 10), (500, 12), (1000, 13), (5000, 14), (60_000, 14)] {
            let settings = LinkSettings {
                silence: Duration::from_millis(silence_ms),
                ..LinkSettings::default()
            };
            assert_eq!(settings.packet_timeout(), exponent, "{silence_ms} ms");
        }
    }

    #[test]
    fn what_a_device_cant_do_is_said() {
        let mut limits = Limits {
            work_requests: 1024,
            completions: 1024,
            reads_in: 16,
            reads_out: 16,
            windows: 100,
            ports: 1,
        };
        LinkSettings::default().check(&limits).unwrap();
        limits.completions = 100;
        let error = LinkSettings::default().check(&limits).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let wrong = LinkSettings {
            window: 0,
            ..LinkSettings::default()
        };
        assert_eq!(wrong.check(&limits).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}
