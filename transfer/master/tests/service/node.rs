//! A node that lends memory without having any: it keeps a ledger as a real one does, and obeys its master.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kvstored_core::Runtime;
use kvstored_core::runtime::ThreadHandle;
use kvstored_master::client::ClientSettings;
use kvstored_master::client::blocking::MasterClient;
use kvstored_master::{
    Finished, Holding, HoldingState, Lender, NewObject, NodeId, PutOptions, Ticket, TokenKey, TokenRange,
};
use parking_lot::Mutex;

use super::soon;

/// How long a heartbeat waits for orders.
const WAIT: Duration = Duration::from_millis(300);

#[derive(Default)]
pub struct Ledger {
    pub epoch: u64,
    pub token_key: Option<TokenKey>,
    pub ranges: BTreeMap<u64, Holding>,
    highest_put: u64,
    /// Whether a master knows all of this.
    pub announced: bool,
}

pub struct FakeNode {
    pub id: NodeId,
    pub ledger: Arc<Mutex<Ledger>>,
    stop: Arc<AtomicBool>,
    thread: Mutex<Option<ThreadHandle>>,
}

impl FakeNode {
    /// Lends bytes until it's dropped, through whatever master its settings lead to.
    pub fn start(number: u8, segment_bytes: u64, settings: ClientSettings) -> Self {
        let runtime = Runtime::system();
        let client = MasterClient::new(settings, runtime.clone()).unwrap();
        let ledger = Arc::new(Mutex::new(Ledger::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let lender = Lender {
            node: [number; 16],
            name: format!("node-{number}"),
            control: format!("127.0.0.1:{number}"),
            engine: format!("127.0.0.1:1{number}"),
            segment_bytes,
            obeyed_epoch: 0,
            highest_put: 0,
            draining: None,
        };
        let (kept, stopped) = (ledger.clone(), stop.clone());
        let body = move || {
            let mut mounted = false;
            let mut released: Vec<u64> = Vec::new();
            while !stopped.load(Ordering::Acquire) {
                if !mounted {
                    mounted = mount(&client, &lender, &kept).is_ok();
                    released.clear();
                    if !mounted {
                        std::thread::park_timeout(Duration::from_millis(20));
                        continue;
                    }
                }
                let epoch = kept.lock().epoch;
                match client.heartbeat(&lender.node, epoch, &released, WAIT, soon()) {
                    Ok(orders) if orders.announce => mounted = false,
                    Ok(orders) => {
                        let mut ledger = kept.lock();
                        for put in &orders.release {
                            ledger.ranges.remove(put);
                            ledger.highest_put = ledger.highest_put.max(*put);
                        }
                        released = orders.release;
                    }
                    Err(_) => {
                        std::thread::park_timeout(Duration::from_millis(20));
                    }
                }
            }
        };
        let thread = runtime.spawner.spawn("fake-node", Box::new(body)).unwrap();
        let node = Self {
            id: [number; 16],
            ledger,
            stop,
            thread: Mutex::new(Some(thread)),
        };
        super::until("a node that can be used", || node.ledger.lock().announced);
        node
    }

    /// What a node does for a client that writes: checks the token, takes the bytes and the descriptor.
    pub fn write(&self, ticket: &Ticket, key: &[u8], length: u64, checksum: u64) -> bool {
        let mut ledger = self.ledger.lock();
        let Some(location) = ticket.locations.iter().find(|location| location.node == self.id) else {
            return false;
        };
        let range = TokenRange {
            node: &self.id,
            put: ticket.put,
            offset: location.offset,
            length,
            key,
        };
        let token_key = ledger.token_key.clone().unwrap();
        if token_key.verify(ledger.epoch, &range, &location.token).is_err() {
            return false;
        }
        let end = location.offset + length;
        for other in ledger.ranges.values() {
            let apart = end <= other.offset || other.offset + other.length <= location.offset;
            assert!(apart, "put {} overlaps put {}", ticket.put, other.put);
        }
        ledger.highest_put = ledger.highest_put.max(ticket.put);
        let holding = Holding {
            key: key.into(),
            put: ticket.put,
            offset: location.offset,
            length,
            checksum,
            state: HoldingState::Sealed,
        };
        ledger.ranges.insert(ticket.put, holding);
        true
    }
}

fn mount(client: &MasterClient, lender: &Lender, ledger: &Mutex<Ledger>) -> kvstored_core::Result<()> {
    let mut lender = lender.clone();
    {
        let ledger = ledger.lock();
        lender.obeyed_epoch = ledger.epoch;
        lender.highest_put = ledger.highest_put;
    }
    let mounted = client.mount(&lender, soon())?;
    let holdings: Vec<Holding> = {
        let mut ledger = ledger.lock();
        ledger.epoch = mounted.epoch;
        ledger.token_key = Some(mounted.token_key);
        ledger.ranges.values().cloned().collect()
    };
    client.announce(&lender.node, mounted.epoch, &holdings, soon())?;
    ledger.lock().announced = true;
    Ok(())
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.lock().take() {
            thread.join();
        }
    }
}

/// Puts an object on the nodes that the master names.
pub fn put(
    client: &MasterClient,
    nodes: &[&FakeNode],
    key: &[u8],
    length: u64,
    options: &PutOptions,
) -> kvstored_core::Result<Ticket> {
    let new = NewObject { key, length };
    let ticket = client.start_puts(&[new], options, soon())?.remove(0)?;
    let holders = nodes
        .iter()
        .filter(|node| node.write(&ticket, key, length, length));
    let holders: Vec<NodeId> = holders.map(|node| node.id).collect();
    let epoch = nodes
        .iter()
        .map(|node| node.ledger.lock().epoch)
        .min()
        .unwrap_or(0);
    let finished = Finished {
        key,
        put: ticket.put,
        checksum: length,
        nodes: &holders,
        master_epoch: epoch,
    };
    client.end_puts(&[finished], soon())?.remove(0)?;
    Ok(ticket)
}
