//! What the plugin is to do next. A batch is queued, and the plugin's thread takes the next call up, with one turn of its
//! lock each.

use std::collections::VecDeque;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use kvstored_plugin::abi;

use crate::caller::Plugin;

/// Most operations in one call of the plugin, so that others' calls come between.
const MOST_AT_ONCE: usize = 128;

/// Something to do with the plugin.
pub(crate) enum Job {
    /// Hand so many operations over, those that have waited longest.
    Submit(usize),
    /// Forget blocks.
    Remove(Vec<abi::Key>),
    /// Whatever somebody waits for, and how long it may take.
    Call(Duration, Box<dyn FnOnce(&mut Plugin) + Send>),
    /// Close the tier and end the thread.
    Close(SyncSender<()>),
}

#[derive(Default)]
pub(crate) struct Flow {
    jobs: VecDeque<Job>,
    /// Tickets that the jobs hand over, in their order.
    queued: VecDeque<u64>,
    /// When the last of them will have taken too long.
    queued_deadline: Option<Instant>,
    /// When the call that the plugin is in will have taken too long.
    pub call_deadline: Option<Instant>,
    /// When the watchdog looks by itself; `None` while it sleeps until it's woken.
    pub next_look: Option<Instant>,
    /// The tier has stopped: nothing is taken any more.
    pub ending: bool,
    /// The plugin's thread has ended: nothing is done any more.
    ended: bool,
}

impl Flow {
    /// Queues operations that are in the table until their deadline.
    pub fn queue_operations(&mut self, tickets: &[u64], deadline: Instant) {
        self.queued.extend(tickets);
        self.queued_deadline = Some(deadline);
        match self.jobs.back_mut() {
            Some(Job::Submit(count)) => *count += tickets.len(),
            _ => self.jobs.push_back(Job::Submit(tickets.len())),
        }
    }

    /// Queues a job where so many may wait; gives it back where there's no room.
    pub fn queue(&mut self, job: Job, most: usize) -> Result<(), Job> {
        if self.ended || self.jobs.len() >= most {
            return Err(job);
        }
        self.jobs.push_back(job);
        Ok(())
    }

    /// Takes the next job. The tickets of operations go to `tickets`, which they replace.
    pub fn next_job(&mut self, tickets: &mut Vec<u64>) -> Option<Job> {
        tickets.clear();
        let job = self.jobs.pop_front()?;
        let Job::Submit(count) = job else { return Some(job) };
        let now = count.min(MOST_AT_ONCE);
        if count > now {
            self.jobs.push_front(Job::Submit(count - now));
        }
        tickets.extend(self.queued.drain(..now.min(self.queued.len())));
        Some(Job::Submit(tickets.len()))
    }

    /// When a call that hands the next operations over will have taken too long: when they all will have.
    pub fn operations_deadline(&self) -> Option<Instant> {
        self.queued_deadline
    }

    /// Ends the queue. Returns what will not be done.
    pub fn end(&mut self) -> VecDeque<Job> {
        self.ended = true;
        self.queued.clear();
        std::mem::take(&mut self.jobs)
    }

    pub fn has_ended(&self) -> bool {
        self.ended
    }
}

#[cfg(test)]
mod tests {
    use kvstored_core::Runtime;

    use super::*;

    fn later() -> Instant {
        Runtime::system().deadline(Duration::from_secs(1))
    }

    fn submitted(flow: &mut Flow, tickets: &mut Vec<u64>) -> Option<usize> {
        match flow.next_job(tickets) {
            Some(Job::Submit(count)) => Some(count),
            _ => None,
        }
    }

    #[test]
    fn operations_that_wait_are_handed_over_together_and_in_order() {
        let mut flow = Flow::default();
        flow.queue_operations(&[0, 1], later());
        flow.queue_operations(&[2], later());
        assert!(flow.queue(Job::Remove(Vec::new()), 2).is_ok());
        // not past what was queued between
        flow.queue_operations(&[3], later());
        let mut tickets = vec![9];
        assert_eq!(submitted(&mut flow, &mut tickets), Some(3));
        assert_eq!(tickets, [0, 1, 2]);
        assert!(matches!(flow.next_job(&mut tickets), Some(Job::Remove(_))));
        assert!(tickets.is_empty());
        assert_eq!(submitted(&mut flow, &mut tickets), Some(1));
        assert_eq!(tickets, [3]);
        assert!(flow.next_job(&mut tickets).is_none());
    }

    #[test]
    fn one_call_takes_no_more_than_it_may_and_leaves_the_others_in_front() {
        let mut flow = Flow::default();
        let many: Vec<u64> = (0..MOST_AT_ONCE as u64 + 2).collect();
        flow.queue_operations(&many, later());
        assert!(flow.queue(Job::Remove(Vec::new()), 8).is_ok());
        let mut tickets = Vec::new();
        assert_eq!(submitted(&mut flow, &mut tickets), Some(MOST_AT_ONCE));
        assert_eq!(submitted(&mut flow, &mut tickets), Some(2));
        assert_eq!(tickets, [MOST_AT_ONCE as u64, MOST_AT_ONCE as u64 + 1]);
        assert!(matches!(flow.next_job(&mut tickets), Some(Job::Remove(_))));
    }

    #[test]
    fn a_queue_that_ended_takes_nothing() {
        let mut flow = Flow::default();
        flow.queue_operations(&[1], later());
        assert_eq!(flow.end().len(), 1);
        assert!(flow.has_ended());
        assert!(flow.queue(Job::Remove(Vec::new()), 8).is_err());
        assert!(flow.next_job(&mut Vec::new()).is_none());
    }
}
