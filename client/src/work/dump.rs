//! Dumps of whole blocks: reserve a window of slots, copy in, commit.

use std::collections::VecDeque;
use std::sync::Arc;

use kvstored_core::block::BlockHash;
use kvstored_core::error::{ErrorKind, Result};
use kvstored_core::tier::{Durability, NamespaceInfo};

use crate::copy::CopyPlan;
use crate::session::{PooledSession, Ticket, Until, unexpected};
use crate::task::{BlockOutcome, TaskState};
use crate::wire::{Answer, Granted, Request};

use super::acknowledge::Pending;
use super::{Claims, Core};

/// Reserves under way per stream.
const DEPTH: usize = 2;
/// Commits under way per stream; the oldest must be acknowledged before the next.
const MAX_COMMITS: usize = 64;
/// How long the engine lets a reserve wait in line at a time; in between this stream looks after other work.
const WAIT_MS: u32 = 100;

/// A dump to be done.
pub(crate) struct DumpJob {
    pub(crate) task: Arc<TaskState>,
    pub(crate) claims: Claims,
    info: Arc<NamespaceInfo>,
    hashes: Vec<BlockHash>,
    parent: Option<BlockHash>,
    plan: CopyPlan,
    durability: Durability,
    window: usize,
}

impl DumpJob {
    pub(crate) fn new(
        core: &Core,
        task: Arc<TaskState>,
        info: Arc<NamespaceInfo>,
        hashes: Vec<BlockHash>,
        parent: Option<BlockHash>,
        plan: CopyPlan,
        durability: Durability,
    ) -> Self {
        let window = core.settings.window(info.layout.image_bytes());
        Self {
            task,
            claims: Claims::new(hashes.len(), window),
            info,
            hashes,
            parent,
            plan,
            durability,
            window,
        }
    }

    /// Dumps windows until none is left; the acknowledger waits for the last commits.
    pub(crate) fn run(&self, core: &Core) {
        let stopped = || core.stopped(&self.task);
        let until = Until::Stopped(&stopped);
        let session = until.check(&core.runtime).and_then(|()| {
            let mut session = core.dump_sessions.take(until)?;
            let number = session.namespace(&self.info, until)?;
            Ok((session, number))
        });
        let (session, number) = match session {
            Ok(session) => session,
            Err(error) => return self.task.fail(self.claims.claim_all(), &error),
        };
        let mut dumping = Dumping {
            core,
            job: self,
            session,
            number,
            reserves: VecDeque::new(),
            commits: VecDeque::new(),
            retry: Vec::new(),
            fruitless: 0,
        };
        match dumping.dump() {
            Ok(()) => {
                let Dumping { session, commits, .. } = dumping;
                core.acknowledger.wait_for(Pending {
                    task: self.task.clone(),
                    session,
                    commits,
                });
            }
            Err(error) => {
                let reserved = dumping
                    .reserves
                    .into_iter()
                    .chain(dumping.commits)
                    .flat_map(|(_, window)| window);
                let rest = dumping.retry.into_iter().chain(self.claims.claim_all());
                self.task.fail(reserved.chain(rest), &error);
                // slots that were reserved go back with the session
                dumping.session.discard();
            }
        }
    }
}

struct Dumping<'a> {
    core: &'a Core,
    job: &'a DumpJob,
    session: PooledSession,
    number: u32,
    reserves: VecDeque<(Ticket, Vec<usize>)>,
    commits: VecDeque<(Ticket, Vec<usize>)>,
    /// Blocks there was no room for at the last attempt.
    retry: Vec<usize>,
    /// Attempts in a row that found no room at all.
    fruitless: u32,
}

impl Dumping<'_> {
    fn dump(&mut self) -> Result<()> {
        loop {
            let depth = if self.fruitless > 0 { 1 } else { DEPTH };
            while self.reserves.len() < depth {
                // the head of a run before its tail
                let mut window = self.again();
                if window.is_empty() {
                    window = self.job.claims.claim();
                }
                if window.is_empty() {
                    break;
                }
                self.reserve(window)?;
            }
            let Some((ticket, _)) = self.reserves.front() else {
                return Ok(());
            };
            let answer = match self.core.wait(&mut *self.session, *ticket, &self.job.task) {
                Err(error) if error.kind() == ErrorKind::Busy => None,
                answer => Some(answer?),
            };
            let Some((_, window)) = self.reserves.pop_front() else {
                return Ok(());
            };
            match answer {
                Some(Answer::Reserved(granted)) if granted.len() == window.len() => {
                    self.fill(window, granted)?;
                }
                Some(other) => {
                    self.retry.extend(window);
                    return Err(unexpected(&other));
                }
                None => {
                    self.fruitless += 1;
                    self.retry.extend(window);
                }
            }
        }
    }

    fn again(&mut self) -> Vec<usize> {
        if self.retry.is_empty() || !self.reserves.is_empty() {
            return Vec::new();
        }
        if self.fruitless > 0 {
            self.core.back_off(self.fruitless - 1, &self.job.task);
        }
        let count = self.retry.len().min(self.job.window);
        self.retry.drain(..count).collect()
    }

    fn reserve(&mut self, window: Vec<usize>) -> Result<()> {
        let hashes: Vec<BlockHash> = window
            .iter()
            .filter_map(|index| self.job.hashes.get(*index).copied())
            .collect();
        let parent = match window.first() {
            Some(0) | None => self.job.parent,
            Some(first) => self.job.hashes.get(first - 1).copied(),
        };
        let request = Request::Reserve {
            namespace: self.number,
            parent,
            hashes: hashes.into(),
            wait_ms: WAIT_MS,
        };
        let begun = self.session.begin(request);
        // it's in line even if it failed: then it's failed together with the others
        self.reserves
            .push_back((begun.as_ref().copied().unwrap_or(Ticket(0)), window));
        begun.map(drop)
    }

    /// Copies blocks into their slots and commits them.
    fn fill(&mut self, window: Vec<usize>, granted: Vec<Granted>) -> Result<()> {
        let task = &self.job.task;
        let arena = self.session.arena().clone();
        let (mut filled, mut indices, mut ended) = (Vec::new(), Vec::new(), Vec::new());
        let (mut busy, mut slots) = (false, Vec::new());
        for (index, granted) in window.into_iter().zip(granted) {
            match granted {
                Granted::Slot { reservation, offset } => slots.push((index, reservation, offset as usize)),
                Granted::Present => ended.push((index, BlockOutcome::Present)),
                Granted::Refused(failure) if failure.kind == ErrorKind::Busy => {
                    busy = true;
                    self.retry.push(index);
                }
                Granted::Refused(failure) => {
                    ended.push((index, BlockOutcome::Failed(failure.into())));
                }
            }
        }
        // on a device all at once, and here one after the other, so that a cancelled task ends soon
        let at_once = if self.job.plan.is_on_device() {
            slots.len().max(1)
        } else {
            1
        };
        let mut stopped = None;
        for part in slots.chunks(at_once) {
            stopped = stopped.or_else(|| self.core.stopped(task));
            if let Some(error) = &stopped {
                let failed =
                    |(index, ..): &(usize, u64, usize)| (*index, BlockOutcome::Failed(error.clone()));
                ended.extend(part.iter().map(failed));
                continue;
            }
            let blocks: Vec<(usize, usize)> = part.iter().map(|(index, _, image)| (*index, *image)).collect();
            let (plan, deadline) = (&self.job.plan, task.deadline());
            let copied = plan.copy_in_all(&blocks, &plan.shards(), &arena, deadline);
            for ((index, reservation, _), checksums) in part.iter().zip(copied) {
                match checksums {
                    Ok(checksums) => {
                        filled.push((*reservation, checksums));
                        indices.push(*index);
                    }
                    Err(error) => {
                        self.session.tell(Request::Abort {
                            reservations: vec![*reservation].into(),
                        });
                        ended.push((*index, BlockOutcome::Failed(error)));
                    }
                }
            }
        }
        self.fruitless = if busy && filled.is_empty() {
            self.fruitless + 1
        } else {
            0
        };
        // a block that ends as cancelled must not become visible: its slot goes back with the session
        if let Some(error) = stopped.or_else(|| self.core.stopped(task)) {
            let failed = |index| (index, BlockOutcome::Failed(error.clone()));
            task.finish(ended.into_iter().chain(indices.into_iter().map(failed)));
            return Err(error);
        }
        task.finish(ended);
        if !filled.is_empty() {
            let request = Request::Commit {
                blocks: filled.into(),
                durability: self.job.durability,
            };
            let begun = self.session.begin(request);
            self.commits
                .push_back((begun.as_ref().copied().unwrap_or(Ticket(0)), indices));
            begun?;
        }
        while self.commits.len() > MAX_COMMITS
            && let Some((ticket, _)) = self.commits.front()
        {
            let answer = self.core.wait(&mut *self.session, *ticket, task)?;
            if let Some((_, window)) = self.commits.pop_front() {
                committed(task, window, answer)?;
            }
        }
        Ok(())
    }
}

/// Ends the blocks of an acknowledged commit.
pub(super) fn committed(task: &TaskState, window: Vec<usize>, answer: Answer) -> Result<()> {
    match answer {
        Answer::Committed(outcomes) if outcomes.len() == window.len() => {
            task.finish(window.into_iter().zip(outcomes).map(|(index, outcome)| {
                (
                    index,
                    outcome.map_or_else(
                        |failure| BlockOutcome::Failed(failure.into()),
                        BlockOutcome::Dumped,
                    ),
                )
            }));
            Ok(())
        }
        other => {
            let error = unexpected(&other);
            task.fail(window, &error);
            Err(error)
        }
    }
}
