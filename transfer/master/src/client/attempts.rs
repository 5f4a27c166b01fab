//! What one call makes of what masters say: whom to ask next, and when to give up.

use kvstored_core::{Error, ErrorKind};
use tonic::{Code, Status};

use crate::wire;

/// Most times that one call goes from master to master by their word.
const MAX_FOLLOWED: usize = 3;

/// What one call has tried.
pub(super) struct Attempts {
    /// Masters that couldn't be reached in this round.
    failed: usize,
    /// As many may: all, and one of them again, since an old connection's end shows only in use.
    most: usize,
    followed: usize,
    /// Whether a follower answered: then there is or will be a leader, and it's worth waiting.
    follower: bool,
    /// Whether some master didn't answer in time.
    pub slow: bool,
    pub last: Option<Error>,
}

pub(super) enum Next {
    /// The master's own answer.
    Fail(Error),
    /// Nobody can be reached.
    GiveUp,
    /// That master leads.
    Follow(String),
    /// Ask the next one.
    Another,
    /// Ask the next one in a moment.
    Wait,
}

impl Attempts {
    pub fn new(masters: usize) -> Self {
        Self {
            failed: 0,
            most: masters + 1,
            followed: 0,
            follower: false,
            slow: false,
            last: None,
        }
    }

    pub fn judge(&mut self, status: Option<Status>, address: &str) -> Next {
        let Some(status) = status else {
            self.slow = true;
            let late = Error::new(ErrorKind::TimedOut, "the master doesn't answer").with("master", address);
            return self.failed(late);
        };
        if let Some(leader) = wire::leader_in(&status) {
            self.follower = true;
            self.last = Some(wire::from_status(&status));
            if !leader.is_empty() && leader != address && self.followed < MAX_FOLLOWED {
                self.followed += 1;
                return Next::Follow(leader.to_owned());
            }
            self.followed = 0;
            return Next::Wait;
        }
        let transport = matches!(
            status.code(),
            Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled | Code::DeadlineExceeded
        );
        let error = wire::from_status(&status);
        if wire::is_from_master(&status) || !transport {
            return Next::Fail(error);
        }
        self.slow |= matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded);
        let kind = if self.slow {
            ErrorKind::TimedOut
        } else {
            ErrorKind::Unavailable
        };
        self.failed(Error::new(kind, error.message()).with("master", address))
    }

    fn failed(&mut self, error: Error) -> Next {
        self.last = Some(error);
        self.failed += 1;
        if self.failed < self.most {
            return Next::Another;
        }
        // once a round nobody answers at all, there is no election to wait for
        if std::mem::take(&mut self.follower) {
            self.failed = 0;
            self.followed = 0;
            return Next::Wait;
        }
        Next::GiveUp
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_master_is_given_up_at_once_and_an_election_waited_for() {
        let refused = || Some(Status::unavailable("tcp connect error"));
        let mut alone = Attempts::new(1);
        assert!(matches!(alone.judge(refused(), "a:1"), Next::Another));
        assert!(matches!(alone.judge(refused(), "a:1"), Next::GiveUp));

        let mut several = Attempts::new(2);
        let follower = wire::not_leader(Some("b:1"));
        assert!(matches!(several.judge(Some(follower), "a:1"), Next::Follow(_)));
        for _ in 0..2 {
            assert!(matches!(several.judge(refused(), "b:1"), Next::Another));
        }
        assert!(matches!(several.judge(refused(), "b:1"), Next::Wait));
        let nobody = wire::not_leader(None);
        assert!(matches!(several.judge(Some(nobody), "a:1"), Next::Wait));
        for last_of_round in [false, false, true, false, false] {
            let next = several.judge(refused(), "b:1");
            assert_eq!(matches!(next, Next::Wait), last_of_round);
        }
        assert!(matches!(several.judge(refused(), "b:1"), Next::GiveUp));
    }

    #[test]
    fn what_a_master_says_is_final() {
        let mut attempts = Attempts::new(3);
        let said = wire::to_status(&Error::new(ErrorKind::Unavailable, "seal again"));
        assert!(matches!(attempts.judge(Some(said), "a:1"), Next::Fail(_)));
        let wrong_token = Status::unauthenticated("no");
        let Next::Fail(error) = attempts.judge(Some(wrong_token), "a:1") else {
            panic!("went on with a wrong token");
        };
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    }
}
