//! Decode instances that give a request back.

use serde_json::{Value, json};

use crate::client::post;
use crate::mock::{Behaviour, Step, event};
use crate::setup::Setup;

const SSE: &str = "text/event-stream";

fn given_back(chat: bool) -> Vec<Step> {
    vec![
        event(chat, " one", None),
        event(chat, " \"two\"", None),
        event(chat, "", Some("recomputed")),
        Step::Data("data: [DONE]\n\n".to_owned()),
    ]
}

fn rest(chat: bool) -> Vec<Step> {
    vec![
        event(chat, " three", None),
        event(chat, "", Some("stop")),
        Step::Data("data: [DONE]\n\n".to_owned()),
    ]
}

#[tokio::test]
async fn a_stream_goes_on_where_it_was_given_back() {
    let setup = Setup::new(1, 1).await;
    // however the events come: one by one, or all in one piece
    let joined = given_back(false)
        .into_iter()
        .map(|step| match step {
            Step::Data(text) => text,
            other => panic!("{other:?}"),
        })
        .collect();
    for first in [given_back(false), vec![Step::Data(joined)]] {
        setup.decode[0].behave_in_turn([Behaviour::Script(SSE, first), Behaviour::Script(SSE, rest(false))]);
        let before = setup.prefill[0].count();
        let body = json!({"prompt": "say: ", "stream": true, "max_tokens": 9});
        let reply = setup.complete(&body).await;
        assert_eq!(reply.streamed_text(), " one \"two\" three");
        assert!(!reply.text.contains("recomputed"));
        assert_eq!(
            reply.events().iter().filter(|event| *event == "[DONE]").count(),
            1
        );
        let (prefill, decode) = (setup.prefill[0].seen(), setup.decode[0].seen());
        assert_eq!(prefill.len(), before + 2);
        assert_eq!(prefill.last().unwrap().body["prompt"], "say:  one \"two\"");
        assert_eq!(decode.last().unwrap().body["max_tokens"], 7);
        setup.is_clean().await;
    }
    assert_eq!(setup.metric("kvstored_proxy_recomputed_total").await, 2.0);
}

#[tokio::test]
async fn a_chat_goes_on_in_the_same_message() {
    let setup = Setup::new(1, 1).await;
    setup.decode[0].behave_in_turn([
        Behaviour::Script(SSE, given_back(true)),
        Behaviour::Script(SSE, rest(true)),
    ]);
    let body = json!({"messages": [{"role": "user", "content": "hi"}], "stream": true});
    let reply = post(setup.proxy, "/v1/chat/completions", &body).await;
    assert_eq!(reply.streamed_text(), " one \"two\" three");
    let seen = setup.prefill[0].seen();
    assert_eq!(
        seen[1].body["messages"],
        json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": " one \"two\""}])
    );
    assert_eq!(seen[1].body["continue_final_message"], true);
    setup.is_clean().await;
}

#[tokio::test]
async fn an_answer_in_one_piece_is_put_together() {
    let setup = Setup::new(1, 1).await;
    let answer = |text: &str, stop_reason: Value, tokens: u64| {
        let answer = json!({
            "choices": [{"text": text, "stop_reason": stop_reason}],
            "usage": {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + tokens},
        });
        Behaviour::Script("application/json", vec![Step::Data(answer.to_string())])
    };
    setup.decode[0].behave_in_turn([
        answer("one ", json!("recomputed"), 2),
        answer("two", Value::Null, 1),
    ]);
    let reply = setup.complete(&json!({"prompt": "say: ", "max_tokens": 9})).await;
    assert_eq!(reply.json()["choices"][0]["text"], "one two");
    assert_eq!(reply.json()["usage"]["completion_tokens"], 3);
    assert_eq!(setup.decode[0].seen()[1].body["prompt"], "say: one ");
    assert_eq!(setup.decode[0].seen()[1].body["max_tokens"], 7);
    setup.is_clean().await;
}

#[tokio::test]
async fn a_request_that_is_always_given_back_ends_with_an_error() {
    let setup = Setup::new(1, 1).await;
    setup.decode[0].behave(Behaviour::Script(SSE, given_back(false)));
    let reply = setup
        .complete(&json!({"prompt": "p", "stream": true, "max_tokens": 100}))
        .await;
    assert!(reply.stream_error().contains("too often"));
    let whole = json!({"choices": [{"text": "", "stop_reason": "recomputed"}]});
    setup.decode[0].behave(Behaviour::Script(
        "application/json",
        vec![Step::Data(whole.to_string())],
    ));
    let reply = setup.whole().await;
    assert_eq!(reply.status, 502);
    assert!(reply.message().contains("too often"));
    setup.is_clean().await;
}

#[tokio::test]
async fn when_the_rest_fails_the_stream_says_so() {
    let setup = Setup::new(1, 1).await;
    setup.decode[0].behave_in_turn([
        Behaviour::Script(SSE, given_back(false)),
        Behaviour::Status(500, "{}"),
    ]);
    let reply = setup.stream().await;
    assert_eq!(reply.streamed_text(), " one \"two\"");
    assert!(!reply.stream_error().is_empty());
    setup.is_clean().await;
}
