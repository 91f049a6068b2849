//! Asks webhooks whether a step may begin. Each route has one question at most, and an answer lasts until the next one.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::Duration,
};

use config::{Split, Url};
use http::{HeaderMap, HeaderValue, Method, header};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

use crate::{outbound::Outbound, percent};

/// What a webhook is told.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Question {
    pub(super) route: String,
    /// Counted from 1.
    pub(super) step: usize,
    pub(super) steps: usize,
    /// Of the step that is to begin.
    #[serde(serialize_with = "percent::serialize")]
    pub(super) green_percentage: Split,
    /// Of the plan. RFC 3339.
    pub(super) started_at: String,
}

#[derive(Default)]
pub(super) struct Webhooks {
    outbound: Arc<Outbound>,
    asked: Arc<Mutex<BTreeMap<String, Asked>>>,
}

struct Asked {
    /// The same one as that of the task that asks.
    question: Arc<Question>,
    url: Url,
    /// When somebody last wanted to know.
    wanted: Instant,
    /// Why it has not said yes; `None`: it has.
    no: Option<String>,
    /// Ends with it, so that a question that was dropped is not asked once more.
    _asking: AbortOnDropHandle<()>,
}

const PATIENCE: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_secs(10);
/// A route that is judged no more asks for nothing, and says nothing.
const FORGOTTEN: Duration = Duration::from_secs(20);

impl Webhooks {
    /// Why its last answer was not yes, or there is none. The first call begins to ask; it is asked again and again
    /// until the question changes, or nobody wants to know.
    pub(super) fn ask(&self, url: &Url, question: Question) -> Option<String> {
        let mut asked = self.asked.lock();
        if let Some(asked) = asked.get_mut(&question.route)
            && *asked.question == question
            && asked.url == *url
        {
            asked.wanted = Instant::now();
            return asked.no.clone();
        }
        let no = "is being asked".to_owned();
        let (wanted, question) = (Instant::now(), Arc::new(question));
        let asking = tokio::spawn(keep_asking(
            self.outbound.clone(),
            Arc::downgrade(&self.asked),
            url.clone(),
            question.clone(),
        ));
        let new = Asked {
            question: question.clone(),
            url: url.clone(),
            wanted,
            no: Some(no.clone()),
            _asking: AbortOnDropHandle::new(asking),
        };
        asked.insert(question.route.clone(), new);
        Some(no)
    }

    pub(super) fn forget(&self, route: &str) {
        self.asked.lock().remove(route);
    }
}

async fn keep_asking(
    outbound: Arc<Outbound>,
    asked: Weak<Mutex<BTreeMap<String, Asked>>>,
    url: Url,
    question: Arc<Question>,
) {
    let body = serde_json::to_vec(&*question).unwrap_or_default();
    loop {
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        let answer = outbound.send(Method::POST, &url, headers, body.clone().into(), PATIENCE).await;
        let no = match answer {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("{url} answered {}", answer.status().as_u16())),
            Err(problem) => Some(format!("{url} {problem}")),
        };
        {
            let Some(asked) = asked.upgrade() else { return };
            let mut all = asked.lock();
            // Dropped while this was on its way to it.
            let Some(asked) = all.get_mut(&question.route).filter(|asked| Arc::ptr_eq(&asked.question, &question))
            else {
                return;
            };
            if asked.wanted.elapsed() > FORGOTTEN {
                all.remove(&question.route);
                return;
            }
            asked.no = no;
        }
        sleep(AGAIN).await;
    }
}
