//! Flow control: a message is sent only if a receive is posted for it.

use kvstored_core::{Error, ErrorKind, Result};

/// How many messages may be sent, and how many receives the peer doesn't know of yet.
///
/// Each message takes one receive and tells how many were posted again. The last receive is kept for a message that does
/// nothing but that, so that two ends that wait for each other go on.
#[derive(Debug)]
pub(super) struct Credit {
    /// Receives that the peer has posted.
    available: u16,
    /// All of the peer's receives.
    most: u16,
    /// Receives that we posted again and didn't tell of.
    owed: u16,
    /// Past so many, they're told of without being asked.
    tell_at: u16,
}

impl Credit {
    /// At the beginning both ends have posted all of their receives.
    pub fn new(peers: u16, own: u16) -> Self {
        Self {
            available: peers,
            most: peers,
            owed: 0,
            tell_at: (own / 2).max(1),
        }
    }

    /// Whether an ordinary message may be sent.
    pub fn may_send(&self) -> bool {
        self.available > 1
    }

    /// Whether a message that only tells of receives may be sent.
    pub fn may_tell(&self) -> bool {
        self.available > 0
    }

    /// Whether the peer should be told of receives, even if there is nothing else to say.
    pub fn should_tell(&self) -> bool {
        self.owed >= self.tell_at
    }

    /// A message was sent. Returns the number of receives that it tells of.
    pub fn sent(&mut self) -> u16 {
        self.available = self.available.saturating_sub(1);
        std::mem::take(&mut self.owed)
    }

    /// A message came that tells of so many receives, and its own receive was posted again. Fails with `Corrupt` when the
    /// peer can't have so many.
    pub fn received(&mut self, told: u16) -> Result<()> {
        self.owed = self.owed.saturating_add(1);
        let sum = self.available.checked_add(told).filter(|sum| *sum <= self.most);
        self.available =
            sum.ok_or_else(|| Error::new(ErrorKind::Corrupt, "the peer tells of receives it can't have"))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvstored_core::runtime::{Random, SystemRandom};

    struct End {
        credit: Credit,
        /// Messages that the peer sent and that weren't looked at: what each tells.
        arrived: std::collections::VecDeque<u16>,
        wants: u32,
    }

    impl End {
        fn new(peers: u16, own: u16, wants: u32) -> Self {
            Self {
                credit: Credit::new(peers, own),
                arrived: std::collections::VecDeque::new(),
                wants,
            }
        }
    }

    fn speak(from: &mut End, to: &mut End, receives: u16) -> bool {
        if from.wants > 0 && from.credit.may_send() {
            from.wants -= 1;
        } else if !(from.credit.should_tell() && from.credit.may_tell()) {
            return false;
        }
        to.arrived.push_back(from.credit.sent());
        assert!(to.arrived.len() <= usize::from(receives), "the receives ran out");
        true
    }

    fn listen(end: &mut End) -> bool {
        let Some(told) = end.arrived.pop_front() else {
            return false;
        };
        end.credit.received(told).unwrap();
        true
    }

    #[test]
    fn everything_is_said_and_no_receive_is_missing_whoever_is_slow() {
        for seed in 0..50 {
            let random = SystemRandom::seeded(seed);
            let (left_receives, right_receives) = (8 + (seed % 5) as u16, 8 + (seed % 11) as u16);
            let mut left = End::new(right_receives, left_receives, 500);
            let mut right = End::new(left_receives, right_receives, (seed % 3) as u32 * 400);
            let mut idle = 0;
            while idle < 200 {
                let moved = match random.next_u64() % 4 {
                    0 => speak(&mut left, &mut right, right_receives),
                    1 => speak(&mut right, &mut left, left_receives),
                    2 => listen(&mut left),
                    _ => listen(&mut right),
                };
                idle = if moved { 0 } else { idle + 1 };
            }
            assert_eq!((left.wants, right.wants), (0, 0), "seed {seed} stands still");
            assert!(left.arrived.is_empty() && right.arrived.is_empty());
        }
    }

    #[test]
    fn a_peer_that_tells_too_much_is_found_out() {
        let mut credit = Credit::new(8, 8);
        assert_eq!(credit.received(1).unwrap_err().kind(), ErrorKind::Corrupt);
        credit.sent();
        credit.received(1).unwrap();
        assert_eq!(credit.received(u16::MAX).unwrap_err().kind(), ErrorKind::Corrupt);
    }
}
