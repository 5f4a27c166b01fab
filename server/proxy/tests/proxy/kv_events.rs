//! What prefill instances say themselves that they have cached.

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use crate::mock::Mock;
use crate::publisher::{Publisher, cleared, removed, stored};
use crate::setup::{Setup, eventually};

struct Followed {
    setup: Setup,
    publishers: Vec<Publisher>,
}

impl Followed {
    /// Two prefill instances, whose events are followed.
    async fn start(with_replay: bool) -> Self {
        let publishers = vec![Publisher::start().await, Publisher::start().await];
        let setup = Setup::with_flags(2, 1, &Publisher::flags(&publishers, with_replay)).await;
        let mut followed = Self { setup, publishers };
        for index in 0..2 {
            followed.heard(index).await;
        }
        followed
    }

    async fn batches(&self, index: usize, result: &str) -> f64 {
        let instance = self.setup.prefill[index].address;
        let name = "kvstored_proxy_kv_event_batches_total";
        let line = format!("{name}{{instance=\"{instance}\",result=\"{result}\"}}");
        self.setup.metric(&line).await
    }

    async fn blocks(&self, index: usize) -> f64 {
        let instance = self.setup.prefill[index].address;
        let line =
            format!("kvstored_proxy_instance_known_blocks{{role=\"prefill\",instance=\"{instance}\"}}");
        self.setup.metric(&line).await
    }

    /// Waits until a batch of that instance has been taken in since this call.
    async fn heard(&mut self, index: usize) {
        let before = self.batches(index, "applied").await;
        for _ in 0..2000 {
            self.publishers[index].tick().await;
            if self.batches(index, "applied").await > before {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        panic!("nothing is heard of instance {index}");
    }

    /// Waits until so many blocks of that instance are known.
    async fn knows(&mut self, index: usize, blocks: f64) {
        for _ in 0..2000 {
            self.publishers[index].tick().await;
            if self.blocks(index).await == blocks {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        panic!(
            "{} blocks of instance {index} are known",
            self.blocks(index).await
        );
    }

    /// Sends requests and says which prefill instances took them.
    async fn takers(&self, body: &Value, requests: usize) -> Vec<usize> {
        let before: Vec<usize> = self.setup.prefill.iter().map(Mock::count).collect();
        for _ in 0..requests {
            assert_eq!(self.setup.complete(body).await.status, 200);
        }
        let after = self.setup.prefill.iter().map(Mock::count);
        after.zip(before).map(|(after, before)| after - before).collect()
    }
}

fn ids(tokens: u32) -> Value {
    json!({"model": "m", "prompt": (0..tokens).collect::<Vec<u32>>()})
}

#[tokio::test]
async fn a_prompt_of_ids_goes_where_its_blocks_are() {
    let mut followed = Followed::start(true).await;
    let batch = json!([stored(&[1, 2], None, 0..8), stored(&[3], Some(2), 8..12)]);
    followed.publishers[1].publish(batch).await;
    followed.knows(1, 3.0).await;
    assert_eq!(followed.takers(&ids(12), 6).await, [0, 6]);
    let longer = json!({"prompt": (0..40).collect::<Vec<u32>>()});
    assert_eq!(followed.takers(&longer, 4).await, [0, 4]);
    // what tokens alone don't decide is not compared
    let salted = json!({"prompt": (0..12).collect::<Vec<u32>>(), "cache_salt": "s"});
    assert_eq!(followed.takers(&salted, 4).await, [2, 2]);
    // evicted there, and stored here
    followed.publishers[1].publish(json!([removed(&[1, 2, 3])])).await;
    followed.publishers[0]
        .publish(json!([stored(&[1, 2, 3], None, 0..12)]))
        .await;
    followed.knows(1, 0.0).await;
    followed.knows(0, 3.0).await;
    assert_eq!(followed.takers(&ids(12), 6).await, [6, 0]);
    followed.setup.is_clean().await;
}

#[tokio::test]
async fn what_was_missed_is_asked_for() {
    let mut followed = Followed::start(true).await;
    followed.publishers[1].lose(json!([stored(&[1], None, 0..4)]));
    followed.publishers[1].lose(json!([stored(&[2], Some(1), 4..8)]));
    followed.publishers[1]
        .publish(json!([stored(&[3], Some(2), 8..12)]))
        .await;
    followed.knows(1, 3.0).await;
    assert!(followed.batches(1, "replayed").await >= 3.0);
    assert_eq!(followed.batches(1, "lost").await, 0.0);
    assert_eq!(followed.takers(&ids(12), 4).await, [0, 4]);
}

#[tokio::test]
async fn what_was_stored_before_is_asked_for_too() {
    let mut publisher = Publisher::start().await;
    publisher.publish(json!([stored(&[1, 2, 3], None, 0..12)])).await;
    let publishers = vec![Publisher::start().await, publisher];
    let setup = Setup::with_flags(2, 1, &Publisher::flags(&publishers, true)).await;
    let mut followed = Followed { setup, publishers };
    followed.knows(1, 3.0).await;
    assert_eq!(followed.takers(&ids(12), 4).await, [0, 4]);
}

#[tokio::test]
async fn without_a_replay_what_may_be_wrong_is_forgotten() {
    let mut followed = Followed::start(false).await;
    followed.publishers[1]
        .publish(json!([stored(&[1], None, 0..4)]))
        .await;
    followed.knows(1, 1.0).await;
    followed.publishers[1].lose(json!([removed(&[1])]));
    followed.knows(1, 0.0).await;
    assert_eq!(followed.batches(1, "lost").await, 1.0);
    followed.publishers[1]
        .publish(json!([stored(&[7], None, 0..4)]))
        .await;
    followed.knows(1, 1.0).await;
    assert_eq!(followed.takers(&ids(4), 4).await, [0, 4]);
}

#[tokio::test]
async fn what_a_replay_no_longer_has_is_lost_and_nothing_more() {
    let mut followed = Followed::start(true).await;
    let text = json!({"prompt": "x".repeat(4096)});
    let line = "kvstored_proxy_affinity_tokens_total";
    followed.takers(&text, 2).await;
    followed.publishers[1]
        .publish(json!([stored(&[1], None, 0..4)]))
        .await;
    followed.knows(1, 1.0).await;
    let learned = followed.setup.metric(line).await;
    followed.publishers[1].lose(json!([removed(&[1])]));
    followed.publishers[1].forget_past();
    followed.knows(1, 0.0).await;
    assert_eq!(followed.batches(1, "lost").await, 1.0);
    // it wasn't restarted: what was learned from texts goes on
    followed.takers(&text, 1).await;
    assert!(followed.setup.metric(line).await > learned);
    followed.publishers[1]
        .publish(json!([stored(&[7], None, 0..4)]))
        .await;
    followed.knows(1, 1.0).await;
}

#[tokio::test]
async fn a_removed_instance_s_events_count_no_more() {
    let mut followed = Followed::start(true).await;
    let address = followed.setup.prefill[1].address;
    let body = json!({"type": "prefill", "instances": address.to_string()});
    let reply = crate::client::post(followed.setup.proxy, "/instances/remove", &body).await;
    assert_eq!(reply.status, 200);
    eventually("it is gone", async || {
        followed.setup.instances().await["instances"]
            .as_array()
            .unwrap()
            .len()
            == 2
    })
    .await;
    for _ in 0..50 {
        followed.publishers[1].tick().await;
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    let all = crate::client::get(followed.setup.proxy, "/metrics").await;
    assert!(
        !all.text
            .contains(&format!("kv_event_batches_total{{instance=\"{address}\""))
    );
}

#[tokio::test]
async fn an_instance_that_was_restarted_has_nothing() {
    let mut followed = Followed::start(true).await;
    followed.publishers[1]
        .publish(json!([stored(&[1, 2, 3], None, 0..12)]))
        .await;
    followed.knows(1, 3.0).await;
    let old = followed.publishers.pop().unwrap();
    let (events, replay) = (old.events.clone(), old.replay.clone());
    old.stop().await;
    eventually("the old blocks are forgotten", async || {
        followed.blocks(1).await == 0.0
    })
    .await;
    let mut new = Publisher::start_at(&events, &replay).await;
    new.publish(json!([stored(&[9], None, 100..104)])).await;
    followed.publishers.push(new);
    followed.knows(1, 1.0).await;
    let other = json!({"prompt": (100..104).collect::<Vec<u32>>()});
    assert_eq!(followed.takers(&other, 4).await, [0, 4]);
    assert_eq!(followed.takers(&ids(12), 4).await, [2, 2]);
}

#[tokio::test]
async fn a_cleared_cache_attracts_no_text_either() {
    let mut followed = Followed::start(true).await;
    let text = json!({"prompt": "x".repeat(4096)});
    let line = "kvstored_proxy_affinity_tokens_total";
    followed.takers(&text, 2).await;
    let learned = followed.setup.metric(line).await;
    assert!(learned > 0.0);
    for index in 0..2 {
        followed.publishers[index].publish(json!([cleared()])).await;
        followed.heard(index).await;
    }
    followed.takers(&text, 1).await;
    assert_eq!(followed.setup.metric(line).await, learned);
}

#[tokio::test]
async fn garbage_is_counted_and_nothing_from_before_it_is_believed() {
    let mut followed = Followed::start(true).await;
    followed.publishers[1]
        .publish(json!([stored(&[1], None, 0..4)]))
        .await;
    followed.knows(1, 1.0).await;
    let before = followed.batches(1, "unreadable").await;
    // no MessagePack, other MessagePack, lengths that can't be, depth
    let endless_list = b"\x93\xcb\0\0\0\0\0\0\0\0\xdd\xff\xff\xff\xff";
    let endless_bytes = b"\x93\xcb\0\0\0\0\0\0\0\0\x91\x81\xa4type\xdb\xff\xff\xff\xff";
    let deep = [b"\x93\xcb\0\0\0\0\0\0\0\0".as_slice(), &vec![0x91; 100_000]].concat();
    let wrong: [&[u8]; 6] = [b"", b"\xc1", b"\xa3abc", endless_list, endless_bytes, &deep];
    for payload in wrong {
        followed.publishers[1].garbage(payload).await;
    }
    followed.publishers[1].frames(&[b"kv"]).await;
    followed.publishers[1].frames(&[b"kv", b"short", b"x"]).await;
    followed.publishers[1]
        .publish(json!([{"type": "Other", "x": [1]}, ["BlockRemoved", [99]], stored(&[3, 2], None, 0..8)]))
        .await;
    followed.knows(1, 2.0).await;
    assert_eq!(followed.batches(1, "unreadable").await - before, 8.0);
    assert_eq!(followed.takers(&ids(8), 4).await, [0, 4]);
}

#[tokio::test]
async fn a_publisher_that_is_none_hurts_nobody() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let babbling = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let flags = format!(
        "--connect-timeout-ms 100 --prefiller-kv-events {} {}",
        silent.local_addr().unwrap(),
        babbling.local_addr().unwrap()
    );
    let babble = tokio::spawn(async move {
        for count in 0.. {
            let (mut stream, _) = babbling.accept().await.unwrap();
            // a greeting and then a frame of nearly 2^64 bytes, or no greeting at all
            let mut bytes = vec![0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3, 0];
            bytes.extend_from_slice(b"NULL");
            bytes.resize(64, 0);
            bytes.extend_from_slice(b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03PUB");
            bytes.extend_from_slice(&[2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xf0]);
            if count % 2 == 1 {
                bytes = b"HTTP/1.1 400 Bad Request\r\n\r\n".repeat(4);
            }
            let _ = stream.write_all(&bytes).await;
            if count >= 3 {
                break;
            }
        }
    });
    let setup = Setup::with_flags(2, 1, &flags).await;
    babble.await.unwrap();
    let text = json!({"prompt": "x".repeat(4096)});
    for _ in 0..4 {
        assert_eq!(setup.complete(&text).await.status, 200);
    }
    assert_eq!(setup.complete(&ids(12)).await.status, 200);
    // what was sent where still counts
    assert!(setup.metric("kvstored_proxy_affinity_tokens_total").await > 0.0);
    setup.is_clean().await;
    drop(silent);
}

#[tokio::test]
async fn an_added_instance_s_events_are_followed() {
    let mut publisher = Publisher::start().await;
    publisher.publish(json!([stored(&[1, 2, 3], None, 0..12)])).await;
    let added = Mock::start("added").await;
    let setup = Setup::new(1, 1).await;
    let body = json!({
        "type": "prefill", "instances": added.address.to_string(),
        "kv_events": publisher.events, "kv_replays": [publisher.replay],
    });
    let wrong =
        json!({"type": "prefill", "instances": "127.0.0.1:9", "kv_events": ["127.0.0.1:1", "127.0.0.1:2"]});
    let reply = crate::client::post(setup.proxy, "/instances/add", &wrong).await;
    assert_eq!(reply.status, 400);
    assert!(reply.message().contains("kv_events"), "{}", reply.message());
    let reply = crate::client::post(setup.proxy, "/instances/add", &body).await;
    assert_eq!(reply.status, 200);
    let line = format!(
        "kvstored_proxy_instance_known_blocks{{role=\"prefill\",instance=\"{}\"}}",
        added.address
    );
    eventually("its blocks are known", async || setup.metric(&line).await == 3.0).await;
    eventually("it takes requests", async || {
        let state = setup.instances().await;
        state["instances"][1]["phase"] == "active"
    })
    .await;
    for _ in 0..4 {
        assert_eq!(setup.complete(&ids(12)).await.status, 200);
    }
    assert_eq!(added.count(), 4);
}
