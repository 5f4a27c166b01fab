//! Several masters and a real etcd: the leader is killed, stopped, cut off from etcd, and an old one wakes up.

use kvstored_core::Runtime;
use kvstored_master::client::blocking::MasterClient;
use kvstored_master::{NewObject, PutOptions};
use rustix::process::Signal;

use super::etcd::Etcd;
use super::node::{FakeNode, put};
use super::process::Master;
use super::{client, key, settings, soon, until};

pub fn master(etcd: &Etcd) -> Master {
    master_of(&etcd.address)
}

/// One that knows the members of an etcd.
fn master_of(endpoints: &str) -> Master {
    Master::start(&[
        "--enable_ha",
        "--etcd_endpoints",
        endpoints,
        "--cluster_id",
        "test",
        "--leader_lease_ttl",
        "2",
    ])
}

fn leads(master: &Master) -> bool {
    client(&[&master.address])
        .status(soon())
        .is_ok_and(|status| status.leader)
}

/// Waits for a leader; returns its index.
pub fn leader(masters: &[&Master]) -> usize {
    let mut found = 0;
    until("a leader", || {
        let leading: Vec<usize> = (0..masters.len())
            .filter(|index| leads(masters[*index]))
            .collect();
        assert!(leading.len() < 2, "two masters lead");
        leading.first().is_some_and(|index| {
            found = *index;
            true
        })
    });
    found
}

pub fn epoch(client: &MasterClient) -> u64 {
    let mut epoch = 0;
    until("the leader's epoch", || {
        let status = client.status(soon()).unwrap();
        epoch = status.epoch;
        status.leader
    });
    epoch
}

#[test]
fn a_killed_leader_is_replaced_and_nothing_is_lost() {
    let Some(etcd) = Etcd::start() else { return };
    let masters = [master(&etcd), master(&etcd)];
    let first = leader(&masters.each_ref());
    let addresses: Vec<String> = masters.iter().map(|master| master.address.clone()).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let follower = client(&[addresses[1 - first]]).status(soon()).unwrap();
    assert_eq!(
        (follower.leader, follower.leader_address.as_str()),
        (false, addresses[first])
    );

    let node = FakeNode::start(1, 1 << 20, settings(&addresses));
    // through the follower alone: it names the leader
    let through_follower = client(&[addresses[1 - first]]);
    for number in 0..20 {
        put(
            &through_follower,
            &[&node],
            &key(&format!("{number}")),
            100,
            &PutOptions::default(),
        )
        .unwrap();
    }
    let before = epoch(&client(&[addresses[first]]));
    let mut masters: Vec<Master> = masters.into();
    masters.remove(first).kill();
    let all = client(&addresses);
    let survivor = masters.remove(0);
    until("the other one to lead", || leads(&survivor));
    assert!(epoch(&client(&[&survivor.address])) > before);
    until("all objects", || {
        let keys: Vec<Box<[u8]>> = (0..20).map(|number| key(&format!("{number}"))).collect();
        let keys: Vec<&[u8]> = keys.iter().map(AsRef::as_ref).collect();
        all.exist(&keys, false, soon())
            .is_ok_and(|there| there.iter().all(Option::is_some))
    });
    until("a put", || {
        put(&all, &[&node], &key("new"), 100, &PutOptions::default()).is_ok()
    });
    // one that comes back follows
    let back = master(&etcd);
    until("a follower", || {
        let status = client(&[&back.address]).status(soon()).unwrap();
        !status.leader && status.leader_address == survivor.address
    });
    // an orderly end gives the leadership away
    assert!(survivor.terminate());
    until("the next leader", || leads(&back));
}

#[test]
fn an_old_leader_that_wakes_up_is_fenced() {
    let Some(etcd) = Etcd::start() else { return };
    let masters = [master(&etcd), master(&etcd)];
    let old = leader(&masters.each_ref());
    let (old, new) = (&masters[old], &masters[1 - old]);
    let node = FakeNode::start(1, 1 << 20, settings(&[&old.address, &new.address]));
    let to_old = client(&[&old.address]);
    put(&to_old, &[&node], &key("kept"), 100, &PutOptions::default()).unwrap();
    // a put that the old leader began
    let began = key("began");
    let new_object = NewObject {
        key: &began,
        length: 100,
    };
    let ticket = to_old
        .start_puts(&[new_object], &PutOptions::default(), soon())
        .unwrap()
        .remove(0)
        .unwrap();
    let old_epoch = epoch(&to_old);

    old.signal(Signal::STOP);
    until("the other one to lead", || leads(new));
    let new_epoch = epoch(&client(&[&new.address]));
    assert!(new_epoch > old_epoch);
    until("the node to obey it", || node.ledger.lock().epoch == new_epoch);
    assert!(
        !node.write(&ticket, &began, 100, 100),
        "a token of the old leader was taken"
    );

    // a call that lies in the old leader's socket while it sleeps
    let mut patient = settings(&[&old.address]);
    patient.attempt_timeout = super::PATIENCE;
    let late = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let client = MasterClient::new(patient, Runtime::system()).unwrap();
            let key = key("late");
            let new = NewObject {
                key: &key,
                length: 100,
            };
            let tickets = client.start_puts(&[new], &PutOptions::default(), soon());
            tickets.unwrap().remove(0).unwrap()
        });
        super::pause(std::time::Duration::from_millis(200));
        old.signal(Signal::CONT);
        waiting.join().unwrap()
    });
    assert!(
        node.write(&late, &key("late"), 100, 100),
        "the old leader answered by itself"
    );
    let status = client(&[&old.address]).status(soon()).unwrap();
    assert!(!status.leader, "the old leader still believes in itself");
    until("the old one to follow", || {
        client(&[&old.address]).status(soon()).unwrap().leader_address == new.address
    });
    let there = client(&[&new.address])
        .exist(&[&key("kept")], false, soon())
        .unwrap();
    assert!(there[0].is_some());
}

#[test]
fn a_leader_without_etcd_steps_down_and_comes_back() {
    let Some(etcd) = Etcd::start() else { return };
    let only = master(&etcd);
    leader(&[&only]);
    let node = FakeNode::start(1, 1 << 20, settings(&[&only.address]));
    let client = client(&[&only.address]);
    put(&client, &[&node], &key("a"), 100, &PutOptions::default()).unwrap();
    let before = epoch(&client);
    etcd.signal(Signal::STOP);
    until("the leader to step down", || !leads(&only));
    etcd.signal(Signal::CONT);
    until("a leader again", || leads(&only));
    // the same term goes on where its lease outlived the pause
    assert!(epoch(&client) >= before);
    until("its object", || {
        client
            .exist(&[&key("a")], false, soon())
            .is_ok_and(|there| there[0].is_some())
    });
}

/// The leader and the member of etcd that it may lean on end at once; then the other two members go on without one of them.
#[test]
fn a_leader_and_a_member_of_etcd_are_killed() {
    let Some(mut members) = Etcd::start_members(3) else {
        return;
    };
    let endpoints: Vec<&str> = members.iter().map(|member| member.address.as_str()).collect();
    let endpoints = endpoints.join(";");
    let mut masters = vec![
        master_of(&endpoints),
        master_of(&endpoints),
        master_of(&endpoints),
    ];
    let first = leader(&masters.iter().collect::<Vec<_>>());
    let addresses: Vec<String> = masters.iter().map(|master| master.address.clone()).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let node = FakeNode::start(1, 1 << 20, settings(&addresses));
    let all = client(&addresses);
    let keys: Vec<Box<[u8]>> = (0..20).map(|number| key(&format!("{number}"))).collect();
    for key in &keys {
        put(&all, &[&node], key, 100, &PutOptions::default()).unwrap();
    }
    let before = epoch(&client(&[addresses[first]]));

    masters.remove(first).kill();
    // the first is asked first
    drop(members.remove(0));
    let second = leader(&masters.iter().collect::<Vec<_>>());
    assert!(epoch(&client(&[&masters[second].address])) > before);
    let keys: Vec<&[u8]> = keys.iter().map(AsRef::as_ref).collect();
    until("all objects", || {
        all.exist(&keys, false, soon())
            .is_ok_and(|there| there.iter().all(Option::is_some))
    });
    until("a put", || {
        put(&all, &[&node], &key("new"), 100, &PutOptions::default()).is_ok()
    });

    // one of three is no majority: whoever leads gives up, and nobody takes over; a node would look for a leader until then
    drop(node);
    drop(members.remove(0));
    until("nobody to lead", || masters[second].said("leads no more"));
}
