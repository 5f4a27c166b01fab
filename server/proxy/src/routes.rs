//! The routes.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri, http::request};
use serde_json::json;

use crate::access::{Access, Outcome};
use crate::admin;
use crate::answer::{self, Answer, AnswerBody};
use crate::instance::{Fitness, Role, Upstream};
use crate::intake::{self, REQUEST_ID, Refusal};
use crate::legs::{Failure, Job, Started, Trouble, Whole, exchange};
use crate::proxy::Proxy;
use crate::recompute::{Generated, is_recomputed, rest_of};
use crate::relay::Relay;
use crate::request::{Api, CompletionRequest, Pieces};
use crate::usage::put_into_answer;

/// How often a request may be given back before the client got any of its answer.
const MAX_RECOMPUTES: u32 = 16;

/// Answers a request.
pub async fn handle(
    proxy: Arc<Proxy>,
    client: SocketAddr,
    request: Request<Incoming>,
) -> Result<Answer, Infallible> {
    let (head, body) = request.into_parts();
    if let Err(refusal) = intake::check_headers(&head) {
        return Ok(closing(refuse(&refusal)));
    }
    let method = &head.method;
    let answer = match (head.uri.path(), method.as_str()) {
        // boxed, so that a connection doesn't carry the room for it while it streams or waits
        ("/v1/completions", "POST") => Box::pin(complete(proxy, client, Api::Completions, &head, body)).await,
        ("/v1/chat/completions", "POST") => Box::pin(complete(proxy, client, Api::Chat, &head, body)).await,
        ("/v1/models", "GET") => Box::pin(models(&proxy, &head)).await,
        ("/healthcheck", "GET") => health(&proxy),
        ("/metrics", "GET") => metrics(&proxy),
        (
            "/instances"
            | "/instances/add"
            | "/instances/remove"
            | "/instances/drain"
            | "/reset_prefix_cache",
            _,
        ) => Box::pin(admin::handle(&proxy, &head, body)).await,
        ("/v1/completions" | "/v1/chat/completions", _) => not_allowed("POST"),
        ("/v1/models" | "/healthcheck" | "/metrics", _) => not_allowed("GET"),
        _ => answer::error(StatusCode::NOT_FOUND, "there is no such route"),
    };
    Ok(answer)
}

/// The answer to another method than the route has.
pub fn not_allowed(allowed: &'static str) -> Answer {
    let mut answer = answer::error(
        StatusCode::METHOD_NOT_ALLOWED,
        &format!("this route takes {allowed} only"),
    );
    answer
        .headers_mut()
        .insert(header::ALLOW, HeaderValue::from_static(allowed));
    answer
}

/// The answer to a request that isn't taken in.
pub fn refuse(refusal: &Refusal) -> Answer {
    answer::error(refusal.status, &refusal.message)
}

/// Ends the connection after the answer: the rest of the request was not read.
pub fn closing(mut answer: Answer) -> Answer {
    answer
        .headers_mut()
        .insert(header::CONNECTION, HeaderValue::from_static("close"));
    answer
}

async fn complete(
    proxy: Arc<Proxy>,
    client: SocketAddr,
    api: Api,
    head: &request::Parts,
    body: Incoming,
) -> Answer {
    let new_id = proxy.new_id();
    // a client may use an id twice; the instances must never see one twice
    let (id, upstream_id) = match intake::client_id(&head.headers) {
        Some(own) => (
            own.to_owned(),
            format!("{own}-{}", new_id.get(..16).unwrap_or(&new_id)),
        ),
        None => (new_id.clone(), new_id),
    };
    let id_header = HeaderValue::from_str(&id).ok();
    let mut access = Access::new(Arc::clone(&proxy.metrics), id, api, client);
    let mut answer = match read(&proxy, api, body).await {
        Err(refusal) => {
            access.status = refusal.status.as_u16();
            access.fail(Outcome::Refused, refusal.message.as_str());
            closing(refuse(&refusal))
        }
        Ok((request, permit)) => {
            access.received = tokio::time::Instant::now();
            access.stream = request.stream;
            access.tokens = request.tokens;
            let headers = intake::passed_on(&head.headers);
            let job = Job::new(proxy, request, access, headers, upstream_id, permit);
            run(Box::new(job)).await
        }
    };
    if let Some(id) = id_header {
        answer.headers_mut().insert(REQUEST_ID, id);
    }
    answer
}

async fn read(
    proxy: &Proxy,
    api: Api,
    body: Incoming,
) -> Result<(CompletionRequest, tokio::sync::OwnedSemaphorePermit), Refusal> {
    let taken = intake::read_body(proxy, body, proxy.settings.max_body_bytes).await?;
    let request = CompletionRequest::parse(api, taken.bytes)
        .map_err(|message| Refusal::new(StatusCode::BAD_REQUEST, message))?;
    Ok((request, taken.permit))
}

/// Runs a request until its answer has begun, or is whole.
async fn run(mut job: Box<Job>) -> Answer {
    let mut generated = Generated::default();
    let mut request = job.request.clone();
    for _ in 0..=MAX_RECOMPUTES {
        match job.run(&request).await {
            Err(failure) => return fail(job, failure),
            Ok(Started::Stream(stream)) => {
                job.access.status = StatusCode::OK.as_u16();
                let content_type = stream.content_type.clone();
                let mut answer = Answer::new(AnswerBody::Stream(Box::new(Relay::new(job, stream))));
                let headers = answer.headers_mut();
                headers.insert(header::CONTENT_TYPE, content_type);
                headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
                return answer;
            }
            Ok(Started::Whole(whole)) if is_recomputed(&whole.body) => {
                job.proxy().metrics.recomputed.inc();
                match note_and_rest(&job, &mut generated, &whole) {
                    Ok(rest) => request = rest,
                    Err(message) => {
                        return fail(job, Failure::unable(StatusCode::BAD_GATEWAY, message));
                    }
                }
            }
            Ok(Started::Whole(whole)) => return succeed(job, whole, &generated),
        }
    }
    let message = "the request was given back too often";
    fail(job, Failure::unable(StatusCode::BAD_GATEWAY, message))
}

fn note_and_rest(job: &Job, generated: &mut Generated, whole: &Whole) -> Result<CompletionRequest, String> {
    generated.note_whole(job.request.api, &whole.body);
    rest_of(&job.request, generated)
}

fn succeed(mut job: Box<Job>, whole: Whole, generated: &Generated) -> Answer {
    let mut body = if generated.tokens() == 0 {
        whole.body
    } else {
        generated.put_before(job.request.api, &whole.body)
    };
    if let Some(cached) = job.prefill_cached {
        body = put_into_answer(&body, cached).unwrap_or(body);
    }
    job.access.status = whole.status.as_u16();
    job.access.sent_bytes = body.len() as u64;
    job.access.succeed();
    answer::whole(whole.status, whole.content_type, body)
}

fn fail(mut job: Box<Job>, failure: Failure) -> Answer {
    let status = failure.status();
    job.access.status = status.as_u16();
    let outcome = if matches!(failure, Failure::Refused(_)) {
        Outcome::Refused
    } else {
        Outcome::Failed
    };
    job.access.fail(outcome, failure.message());
    match failure {
        Failure::Refused(whole) => answer::whole(whole.status, whole.content_type, whole.body),
        Failure::Unable { message, .. } => {
            let mut answer = answer::error(status, &message);
            if matches!(
                status,
                StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS
            ) {
                answer
                    .headers_mut()
                    .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            answer
        }
    }
}

/// The models of the first instance that tells.
async fn models(proxy: &Proxy, head: &request::Parts) -> Answer {
    let upstream = Upstream {
        method: Method::GET,
        target: Uri::from_static("/v1/models"),
        headers: intake::passed_on(&head.headers),
        body: Pieces::from(Bytes::new()),
        begun: None,
    };
    let mut last = None;
    for role in Role::ALL {
        for instance in proxy.fleet.instances(role).iter() {
            if instance.condition.fitness() == Fitness::Unusable {
                continue;
            }
            match exchange(instance, &upstream, proxy.settings.health_timeout).await {
                Ok(whole) => return answer::whole(whole.status, whole.content_type, whole.body),
                Err(Trouble {
                    failure: Failure::Refused(whole),
                    ..
                }) => return answer::whole(whole.status, whole.content_type, whole.body),
                Err(trouble) => {
                    tracing::warn!(instance = %instance.name, detail = %trouble.detail, "no list of models");
                    last = Some(trouble);
                }
            }
        }
    }
    let message = match last {
        Some(trouble) => trouble.failure.message(),
        None => "no instance can take requests now".to_owned(),
    };
    answer::error(StatusCode::SERVICE_UNAVAILABLE, &message)
}

/// Healthy while it isn't stopping and each role has somebody.
fn health(proxy: &Proxy) -> Answer {
    let [prefill, decode] = Role::ALL.map(|role| proxy.fleet.instances(role));
    let up = |instances: &[Arc<crate::instance::Instance>]| {
        instances
            .iter()
            .filter(|instance| instance.condition.fitness() != Fitness::Unusable)
            .count()
    };
    let (prefill_up, decode_up) = (up(&prefill), up(&decode));
    let (status, word) = if proxy.is_stopping() {
        (StatusCode::SERVICE_UNAVAILABLE, "stopping")
    } else if prefill_up == 0 || decode_up == 0 {
        (StatusCode::SERVICE_UNAVAILABLE, "unavailable")
    } else {
        (StatusCode::OK, "ok")
    };
    let value = json!({
        "status": word,
        "prefill_instances": prefill.len(),
        "decode_instances": decode.len(),
        "prefill_instances_up": prefill_up,
        "decode_instances_up": decode_up,
        "request_num": proxy.metrics.in_flight.get(),
    });
    answer::json(status, &value)
}

fn metrics(proxy: &Proxy) -> Answer {
    let held = proxy
        .settings
        .max_held_bytes
        .saturating_sub(proxy.body_budget.available_permits());
    proxy.metrics.held_bytes.set(held as u64);
    match proxy.metrics.render(&proxy.fleet) {
        Ok(text) => answer::text(
            StatusCode::OK,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            text,
        ),
        Err(error) => {
            tracing::error!(%error, "metrics can't be written");
            answer::error(StatusCode::INTERNAL_SERVER_ERROR, "metrics can't be written")
        }
    }
}
