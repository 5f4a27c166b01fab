//! What a thread does for a pull.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvstored_core::checksum::Checksum;
use kvstored_core::{Error, ErrorKind, Result};
use kvstored_transfer::{Peer, Transfer, TransferKind};

use super::Consumer;
use super::producers::{Heard, Rank, ask, strange};
use super::ranges::{Batches, Range};
use super::request::Pull;
use crate::memory::{Heads, Memory};
use crate::plan::{check_fit, plan};
use crate::wire::{Answer, MAX_LOCATED, Question, Right, Status};

/// Transfers from one producer at the same time.
const UNDER_WAY: usize = 2;
/// The longest that one question may take, so that a pull that was cancelled ends.
const QUESTION: Duration = Duration::from_secs(5);
/// Waits between questions for checksums grow from the one to the other.
const SUMS_WAITS: [Duration; 2] = [Duration::from_micros(500), Duration::from_millis(20)];
/// How long to wait when too much is under way to a peer.
const BUSY: Duration = Duration::from_millis(2);

/// What a thread's work on a pull came to.
pub(super) enum Step {
    /// All came but these blocks, counted in the pull, of which the bytes had another checksum.
    Over(BTreeSet<u32>),
    /// A producer doesn't know the request yet.
    NotYet,
    /// A producer computes the request still; whether something came.
    Later { came: bool },
}

/// Ends the work on a pull before its end.
pub(super) enum Stop {
    NotYet,
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// A batch under way.
pub(super) struct Batch {
    transfer: Arc<Transfer>,
    ranges: Vec<Range>,
    ticket: u64,
}

/// What is pulled from one producer.
pub(super) struct Source {
    pub peer: Peer,
    pub batches: Batches,
    under_way: VecDeque<Batch>,
    exhausted: bool,
}

impl Source {
    pub fn new(peer: Peer, batches: Batches) -> Self {
        Self {
            peer,
            batches,
            under_way: VecDeque::new(),
            exhausted: false,
        }
    }
}

impl Consumer {
    /// Works on a pull. Nothing writes to its blocks any more when this returns.
    pub(super) fn work(&self, pull: &Pull) -> Result<Step> {
        let work = Work {
            consumer: self,
            memory: self.memory()?,
            pull,
        };
        let outcome = if pull.follows {
            work.follow()
        } else {
            work.run().map(Step::Over)
        };
        // those that are left after an error
        for transfer in pull.transfers() {
            transfer.cancel();
            pull.remove(&transfer);
        }
        match outcome {
            Ok(step) => Ok(step),
            Err(Stop::NotYet) if self.runtime.clock.now() < pull.grace_end => Ok(Step::NotYet),
            Err(Stop::NotYet) => Err(Error::new(
                ErrorKind::NotFound,
                "the producer doesn't know the request",
            )),
            Err(Stop::Failed(_)) if pull.is_cancelled() => {
                Err(Error::new(ErrorKind::Cancelled, "the pull was cancelled"))
            }
            Err(Stop::Failed(error)) => Err(error),
        }
    }
}

pub(super) struct Work<'a> {
    pub consumer: &'a Consumer,
    pub memory: &'a Memory,
    pub pull: &'a Pull,
}

impl Work<'_> {
    fn run(&self) -> Result<BTreeSet<u32>, Stop> {
        let ranks = self.ranks()?;
        let descriptions: Vec<_> = ranks.iter().map(|rank| &*rank.description).collect();
        let slices = plan(&self.memory.description, &descriptions)?;
        let mut sources = Vec::new();
        for (rank, slices) in ranks.iter().zip(slices) {
            if !slices.is_empty() {
                let runs = self.locate(&rank.peer, 0, self.pull.blocks.len())?;
                sources.push(Source::new(rank.peer.clone(), Batches::new(slices, runs)));
            }
        }
        let mut bad = BTreeSet::new();
        self.drain(&mut sources, &mut bad)?;
        Ok(bad)
    }

    /// Moves all that may be given out. Bytes that came.
    pub(super) fn drain(&self, sources: &mut [Source], bad: &mut BTreeSet<u32>) -> Result<u64, Stop> {
        let mut came = 0;
        // all at once, not one after the other
        for source in &mut *sources {
            source.exhausted = false;
            self.fill(source)?;
        }
        while sources.iter().any(|source| !source.under_way.is_empty()) {
            for source in &mut *sources {
                self.fill(source)?;
                let Some(batch) = source.under_way.pop_front() else {
                    continue;
                };
                let outcome = batch.transfer.wait(self.pull.deadline);
                self.pull.remove(&batch.transfer);
                outcome?;
                // while the checksums are made, the next is under way
                self.fill(source)?;
                if batch.ticket != 0 {
                    self.verify(&source.peer, &batch, bad)?;
                }
                came += batch.ranges.iter().map(Range::bytes).sum::<u64>();
            }
        }
        Ok(came)
    }

    /// Whether checksums are compared. Blocks that are followed may be taken back and written to while they are read, and
    /// the question for checksums is what tells.
    fn verifies(&self) -> bool {
        self.consumer.verify || self.pull.follows
    }

    /// All ranks of the producer, which fit this one.
    pub(super) fn ranks(&self) -> Result<Vec<Rank>, Stop> {
        let producers = &self.pull.remote.producers;
        let mut ranks = Vec::with_capacity(producers.len());
        for (index, address) in producers.iter().enumerate() {
            self.check()?;
            let deadline = self.question_deadline();
            let with_address = |error: Error| error.with("producer", address);
            let consumer = self.consumer;
            let opened = consumer
                .producers
                .open(&consumer.engine, &consumer.runtime, address, deadline);
            let rank = self.heard(opened.map_err(with_address)?)?;
            if rank.description.engine_id != self.pull.remote.engine_id {
                return Err(gone("the producer is another engine by now").into());
            }
            check_fit(
                &self.memory.description,
                &rank.description,
                index,
                producers.len(),
            )?;
            ranks.push(rank);
        }
        Ok(ranks)
    }

    /// The runs in which some blocks of the pull lie at a rank.
    pub(super) fn locate(&self, peer: &Peer, first: usize, end: usize) -> Result<Vec<u32>, Stop> {
        let mut runs = Vec::new();
        let mut found = first;
        while found < end {
            let blocks = (end - found).min(MAX_LOCATED);
            let question = Question::Locate {
                engine_id: self.pull.remote.engine_id.clone(),
                request: self.pull.remote.request.clone(),
                first: self.pull.first_block + found as u32,
                blocks: blocks as u32,
            };
            let Answer::Located(part) = self.ask(peer, &question)? else {
                return Err(strange().into());
            };
            let sum: u64 = part.iter().map(|run| u64::from(*run)).sum();
            if sum != blocks as u64 || part.contains(&0) {
                return Err(strange().into());
            }
            runs.extend(part);
            found += blocks;
        }
        Ok(runs)
    }

    /// Has as many transfers under way as there may be.
    fn fill(&self, source: &mut Source) -> Result<(), Stop> {
        while source.under_way.len() < UNDER_WAY && !source.exhausted {
            let ranges = source.batches.next_batch();
            if ranges.is_empty() {
                source.exhausted = true;
                break;
            }
            let batch = self.begin(source, ranges)?;
            source.under_way.push_back(batch);
        }
        Ok(())
    }

    fn begin(&self, source: &Source, ranges: Vec<Range>) -> Result<Batch, Stop> {
        let question = Question::Grant {
            engine_id: self.pull.remote.engine_id.clone(),
            request: self.pull.remote.request.clone(),
            sums: self.verifies(),
            items: ranges
                .iter()
                .map(|range| range.item(self.pull.first_block))
                .collect(),
        };
        let Answer::Granted { ticket, rights } = self.ask(&source.peer, &question)? else {
            return Err(strange().into());
        };
        if rights.len() != ranges.len() || (ticket == 0 && self.verifies()) {
            return Err(strange().into());
        }
        let mut entries = Vec::new();
        for (range, Right { grant, worth }) in ranges.iter().zip(rights) {
            if !worth.is_empty() {
                source.peer.foretold(&grant, &worth);
            }
            let local = self.memory.pieces.get(range.slice.local_piece as usize);
            let local = local.ok_or_else(|| Error::internal("a plan with a piece that isn't there"))?;
            range.entries(local, &self.pull.blocks, grant, &mut entries);
        }
        let transfer = loop {
            self.check()?;
            let submitted = self.consumer.engine.submit_summed(
                &source.peer,
                TransferKind::Read,
                &entries,
                self.pull.deadline,
            );
            match submitted {
                Ok(transfer) => break Arc::new(transfer),
                Err(error) if error.kind() == ErrorKind::Busy => {
                    self.pull.rest(self.consumer.runtime.deadline(BUSY));
                }
                Err(error) => return Err(error.into()),
            }
        };
        self.pull.add(&transfer);
        // a cancellation that came in between has not seen it
        self.check()?;
        Ok(Batch {
            transfer,
            ranges,
            ticket,
        })
    }

    /// Compares checksums of a batch that came; blocks where they differ are added to `bad`.
    fn verify(&self, peer: &Peer, batch: &Batch, bad: &mut BTreeSet<u32>) -> Result<(), Stop> {
        let sums = || -> Vec<u64> { batch.ranges.iter().map(|range| self.sum(range)).collect() };
        // while the producer makes its own, unless the bytes were summed on their way
        let here = (!batch.transfer.tells_checksum()).then(sums);
        let question = Question::Sums { ticket: batch.ticket };
        let [mut wait, longest] = SUMS_WAITS;
        let there = loop {
            self.check()?;
            match ask(peer, &question, self.question_deadline())? {
                Heard::Answer(Answer::Sums(sums)) => break sums,
                Heard::Refused(Status::NotYet) => self.pull.rest(self.consumer.runtime.deadline(wait)),
                Heard::Refused(Status::Gone) => return Err(released().into()),
                Heard::Answer(_) => return Err(strange().into()),
            }
            wait = (wait * 2).min(longest);
        };
        if there.len() != batch.ranges.len() {
            return Err(strange().into());
        }
        let mut all = Checksum::new();
        for (range, sum) in batch.ranges.iter().zip(&there) {
            all.append(*sum, range.bytes());
        }
        if batch.transfer.checksum() == Some(all.value()) {
            return Ok(());
        }
        let here = here.unwrap_or_else(sums);
        for (range, (here, there)) in batch.ranges.iter().zip(here.iter().zip(there)) {
            if *here != there {
                bad.extend(range.first..range.first + range.blocks);
            }
        }
        Ok(())
    }

    fn sum(&self, range: &Range) -> u64 {
        let mut checksum = Checksum::new();
        let heads = Heads {
            first: range.slice.local_head,
            count: range.slice.heads,
        };
        let blocks = range.first as usize..(range.first as usize + range.blocks as usize);
        if let Some(piece) = self.memory.pieces.get(range.slice.local_piece as usize) {
            for block in self.pull.blocks.get(blocks).unwrap_or_default() {
                piece.sum(*block, heads, &mut checksum);
            }
        }
        checksum.value()
    }

    pub(super) fn ask(&self, peer: &Peer, question: &Question) -> Result<Answer, Stop> {
        self.check()?;
        let heard = ask(peer, question, self.question_deadline());
        self.heard(heard.map_err(|error| error.with("producer", peer.address()))?)
    }

    #[allow(clippy::unused_self)] // reads better beside `ask`
    fn heard<T>(&self, heard: Heard<T>) -> Result<T, Stop> {
        match heard {
            Heard::Answer(answer) => Ok(answer),
            Heard::Refused(Status::NotYet) => Err(Stop::NotYet),
            Heard::Refused(Status::Gone) => Err(released().into()),
        }
    }

    /// Fails once the pull was cancelled or its time is over.
    fn check(&self) -> Result<()> {
        if self.pull.is_cancelled() {
            return Err(Error::new(ErrorKind::Cancelled, "the pull was cancelled"));
        }
        if self.consumer.runtime.clock.now() >= self.pull.deadline {
            return Err(Error::new(ErrorKind::TimedOut, "the blocks didn't come in time"));
        }
        Ok(())
    }

    fn question_deadline(&self) -> Instant {
        self.pull.deadline.min(self.consumer.runtime.deadline(QUESTION))
    }
}

fn gone(message: &str) -> Error {
    Error::new(ErrorKind::Fenced, message)
}

fn released() -> Error {
    gone("the producer has released the request")
}
