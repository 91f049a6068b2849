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
    question: Question,
    url: Url,
    /// When somebody last wanted to know.
    wanted: Instant,
    /// Why it has not said yes; `None`: it has.
    no: Option<String>,
}

const PATIENCE: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_secs(10);
/// A route that is judged no more asks for nothing, and says nothing.
const FORGOTTEN: Duration = Duration::from_secs(20);

impl Webhooks {
    /// Why it has not said yes yet. The first call begins to ask; it is asked until it says yes, or the question
    /// changes.
    pub(super) fn ask(&self, url: &Url, question: Question) -> Option<String> {
        let mut asked = self.asked.lock();
        if let Some(asked) = asked.get_mut(&question.route)
            && asked.question == question
            && asked.url == *url
        {
            asked.wanted = Instant::now();
            return asked.no.clone();
        }
        let no = "is being asked".to_owned();
        let wanted = Instant::now();
        let new = Asked { question: question.clone(), url: url.clone(), wanted, no: Some(no.clone()) };
        asked.insert(question.route.clone(), new);
        drop(asked);
        tokio::spawn(keep_asking(self.outbound.clone(), Arc::downgrade(&self.asked), url.clone(), question));
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
    question: Question,
) {
    let body = serde_json::to_vec(&question).unwrap_or_default();
    loop {
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        let answer = outbound.send(Method::POST, &url, headers, body.clone().into(), PATIENCE).await;
        let no = match answer {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("{url} answered {}", answer.status().as_u16())),
            Err(problem) => Some(format!("{url} {problem}")),
        };
        let yes = no.is_none();
        {
            let Some(asked) = asked.upgrade() else { return };
            let mut all = asked.lock();
            // Somebody asks something else by now, or nothing.
            let Some(asked) = all.get_mut(&question.route).filter(|a| a.question == question && a.url == url) else {
                return;
            };
            if asked.wanted.elapsed() > FORGOTTEN {
                all.remove(&question.route);
                return;
            }
            asked.no = no;
        }
        if yes {
            return;
        }
        sleep(AGAIN).await;
    }
}
