//! How fast calls are; run by hand, on a quiet machine:
//!
//! ```text
//! cargo test --release -p kvstored-master --test service -- --ignored --nocapture measure
//! ```

use std::time::Duration;

use kvstored_core::Runtime;
use kvstored_master::{Finished, NewObject, PutOptions};

use super::node::{FakeNode, put};
use super::{client, client_settings, key, soon, start};

const CALLS: u32 = 3000;

#[test]
#[ignore = "measures, and asserts nothing"]
fn measure() {
    let server = start();
    let node = FakeNode::start(1, 1 << 30, client_settings(&server));
    let client = client(&server);
    let keys: Vec<Box<[u8]>> = (0..64)
        .map(|number| key(&format!("some-key-of-usual-length-{number:08}")))
        .collect();
    for key in &keys {
        put(&client, &[&node], key, 1000, &PutOptions::default()).unwrap();
    }
    let keys: Vec<&[u8]> = keys.iter().map(AsRef::as_ref).collect();
    let runtime = Runtime::system();
    let time = |what: &str, calls: u32, call: &mut dyn FnMut(u32)| {
        let begin = runtime.clock.now();
        (0..calls).for_each(&mut *call);
        let each: Duration = (runtime.clock.now() - begin) / calls;
        println!("{what}: {each:?}");
    };
    time("exist of 1", CALLS, &mut |_| {
        drop(client.exist(&keys[..1], false, soon()).unwrap());
    });
    time("exist of 64", CALLS, &mut |_| {
        drop(client.exist(&keys, false, soon()).unwrap());
    });
    time("locate of 1", CALLS, &mut |_| {
        drop(client.locate(&keys[..1], soon()).unwrap());
    });
    time("locate of 64", CALLS, &mut |_| {
        drop(client.locate(&keys, soon()).unwrap());
    });
    let epoch = node.ledger.lock().epoch;
    time("put_start and put_end", CALLS, &mut |number| {
        let key = key(&format!("new-{number}"));
        let new = NewObject {
            key: &key,
            length: 1000,
        };
        let ticket = client
            .start_puts(&[new], &PutOptions::default(), soon())
            .unwrap()
            .remove(0)
            .unwrap();
        let finished = Finished {
            key: &key,
            put: ticket.put,
            checksum: 0,
            nodes: &[node.id],
            master_epoch: epoch,
        };
        client.end_puts(&[finished], soon()).unwrap().remove(0).unwrap();
    });
}
