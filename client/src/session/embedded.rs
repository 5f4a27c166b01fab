//! A session with an engine in this process.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvstored_core::block::Namespace;
use kvstored_core::engine::Engine;
use kvstored_core::error::Result;
use kvstored_core::memory::Arena;
use kvstored_core::runtime::Runtime;
use kvstored_core::tier::NamespaceInfo;
use parking_lot::{Condvar, Mutex};

use crate::service::{Service, ServiceSettings};
use crate::wire::{Answer, Request};

use super::{Session, Ticket, Until, unexpected};

/// How often a waiting thread looks after reservations whose wait is over; nobody else does in this process.
const EXPIRE_INTERVAL: Duration = Duration::from_millis(50);

#[derive(Default)]
struct Mailbox {
    answers: Mutex<HashMap<u32, Answer>>,
    arrived: Condvar,
}

/// Calls the engine directly; answers arrive in a mailbox.
pub(crate) struct EmbeddedSession {
    service: Arc<Service>,
    mailbox: Arc<Mailbox>,
    tier_names: Arc<[String]>,
    numbers: HashMap<Namespace, u32>,
    last_ticket: u32,
    unanswered: usize,
}

impl EmbeddedSession {
    pub(crate) fn new(engine: Arc<Engine>, tier_names: Arc<[String]>) -> Self {
        Self {
            service: Service::new(engine, ServiceSettings::default()),
            mailbox: Arc::default(),
            tier_names,
            numbers: HashMap::new(),
            last_ticket: 0,
            unanswered: 0,
        }
    }
}

impl Session for EmbeddedSession {
    fn arena(&self) -> &Arc<Arena> {
        self.service.engine().arena()
    }

    fn tier_names(&self) -> &[String] {
        &self.tier_names
    }

    fn is_alive(&mut self) -> bool {
        true
    }

    fn is_reusable(&self) -> bool {
        self.unanswered == 0
    }

    fn runtime(&self) -> &Runtime {
        self.service.engine().runtime()
    }

    fn namespace(&mut self, info: &Arc<NamespaceInfo>, until: Until<'_>) -> Result<u32> {
        if let Some(number) = self.numbers.get(&info.namespace) {
            return Ok(*number);
        }
        let request = Request::OpenNamespace {
            identity: Box::new(info.identity.clone()),
            layout: info.layout.clone(),
        };
        match self.call(request, until)? {
            Answer::Opened { namespace } => {
                self.numbers.insert(info.namespace, namespace);
                Ok(namespace)
            }
            other => Err(unexpected(&other)),
        }
    }

    fn begin(&mut self, request: Request<'_>) -> Result<Ticket> {
        self.last_ticket = self.last_ticket.wrapping_add(1);
        self.unanswered += 1;
        let (ticket, mailbox) = (self.last_ticket, self.mailbox.clone());
        self.service.handle(
            request,
            Box::new(move |answer| {
                mailbox.answers.lock().insert(ticket, answer);
                mailbox.arrived.notify_all();
            }),
        );
        Ok(Ticket(ticket))
    }

    fn finish(&mut self, ticket: Ticket, until: Instant) -> Result<Option<Answer>> {
        let engine = self.service.engine();
        loop {
            let mut answers = self.mailbox.answers.lock();
            if let Some(answer) = answers.remove(&ticket.0) {
                self.unanswered -= 1;
                return match answer {
                    Answer::Error(failure) => Err(failure.into()),
                    answer => Ok(Some(answer)),
                };
            }
            let now = engine.runtime().clock.now();
            if now >= until {
                return Ok(None);
            }
            let pause = EXPIRE_INTERVAL.min(until.saturating_duration_since(now));
            if self.mailbox.arrived.wait_for(&mut answers, pause).timed_out() {
                drop(answers);
                engine.expire_parked();
            }
        }
    }

    fn tell(&mut self, request: Request<'_>) {
        self.service.handle(request, Box::new(drop));
    }
}

impl Drop for EmbeddedSession {
    fn drop(&mut self) {
        self.service.close();
    }
}
