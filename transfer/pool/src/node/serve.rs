//! What peers ask of a segment: rights, descriptors, news.

use kvstored_core::{Error, ErrorKind, Result};
use kvstored_transfer::{EngineId, Grant, GrantRequest, Rights};

use super::Segment;
use super::ledger::{Entry, Phase};
use crate::wire::{Answer, Answers, Changes, Item, Listing, Request, Since, Verb};

impl Segment {
    fn open_for(&self, peer: EngineId, item: &Item) -> Result<Answer> {
        let mut ledger = self.ledger.lock();
        self.check_token(item.put, item.offset, item.length, &item.key, &item.token)?;
        self.count(ledger.open(item.put, item.offset, item.length, &item.key))?;
        let entry = ledger.open_entry(item.put)?;
        let grant = self.grant_on(entry, peer, Rights::Write)?;
        Ok(self.grants(&grant, 0))
    }

    fn read_for(&self, peer: EngineId, item: &Item) -> Result<Answer> {
        let mut ledger = self.ledger.lock();
        let entry = self.count(ledger.held_entry(item.put, &item.key))?;
        if (entry.offset, entry.length) != (item.offset, item.length) {
            return Err(Error::new(ErrorKind::Fenced, "the object lies elsewhere"));
        }
        let checksum = entry.checksum;
        let grant = self.grant_on(entry, peer, Rights::Read)?;
        Ok(self.grants(&grant, checksum))
    }

    /// A right for one peer. A range is published when a peer first asks, so that objects which only this process uses
    /// take no place in the engine.
    fn grant_on(&self, entry: &mut Entry, peer: EngineId, rights: Rights) -> Result<Grant> {
        let publication = match entry.publication.take() {
            Some(publication) => publication,
            None => self
                .engine
                .publish(self.memory.id(), entry.offset, entry.length)?,
        };
        let id = publication.id();
        entry.publication = Some(publication);
        self.engine.grant(GrantRequest {
            peer,
            publication: id,
            offset: 0,
            length: entry.length,
            rights,
            expires_in: self.grant,
        })
    }

    fn abandon(&self, item: &Item) -> Result<Answer> {
        {
            let mut ledger = self.ledger.lock();
            if let Some(entry) = ledger.get(item.put)
                && (entry.phase != Phase::Open || *entry.key != *item.key)
            {
                return Err(Error::new(ErrorKind::Fenced, "the put is not open").with("put", item.put));
            }
            ledger.begin_release(item.put);
        }
        self.try_finish(item.put, self.now());
        Ok(self.done(0))
    }

    fn grants(&self, grant: &Grant, checksum: u64) -> Answer {
        Answer {
            grant: grant.encode().as_slice().into(),
            worth: self.engine.foretell(grant).unwrap_or_default().into(),
            ..self.done(checksum)
        }
    }

    fn done(&self, checksum: u64) -> Answer {
        Answer {
            grant: Box::default(),
            worth: Box::default(),
            checksum,
            master_epoch: self.master_epoch(),
        }
    }
}

impl Segment {
    /// What happened since a position in the node's record of changes.
    pub fn changes(&self, since: u64) -> Changes {
        self.ledger.lock().changes(since)
    }

    /// Complete objects behind an offset.
    pub fn list(&self, after: u64) -> Listing {
        self.ledger.lock().list(after)
    }

    /// Answers a peer's question, without waiting for anything.
    pub fn respond(&self, peer: EngineId, question: &[u8]) -> Result<Vec<u8>> {
        let empty = || Error::new(ErrorKind::Corrupt, "an empty question");
        let (code, body) = question.split_first().ok_or_else(empty)?;
        match *code {
            Since::CHANGES => Ok(self.changes(Since::decode(body)?.position).encode()),
            Since::LISTING => Ok(self.list(Since::decode(body)?.position).encode()),
            code => {
                let verb = Verb::of_code(code)?;
                let request = Request::decode(body)?;
                let items = self.handle(verb, peer, &request);
                Ok(Answers { items }.encode())
            }
        }
    }

    fn handle(&self, verb: Verb, peer: EngineId, request: &Request) -> Vec<Result<Answer>> {
        let one = |item: &Item| match verb {
            Verb::Open => self.open_for(peer, item),
            Verb::Read => self.read_for(peer, item),
            Verb::Seal => {
                self.seal(item.put, &item.key, item.checksum)?;
                Ok(self.done(item.checksum))
            }
            Verb::Abandon => self.abandon(item),
        };
        request.items.iter().map(one).collect()
    }
}
