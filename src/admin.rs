//! What every daemon shows of itself: `/metrics`, `/healthz` and `/readyz`.

use std::sync::{Arc, Mutex};

use crate::http::{Admission, Handler, Head, Response};
use crate::locks::lock;
use crate::metrics::Registry;

/// Whether each part a daemon needs can do its job now. Clones share the state.
#[derive(Clone, Default)]
pub struct Health {
    /// One entry a component, in the order they were made; overwritten and read, never held across IO.
    components: Arc<Mutex<Vec<Entry>>>,
}

/// Name of a component, and how it is: ready, or not and why.
type Entry = (String, Result<(), String>);

/// One part whose state is shown by `/readyz`.
#[derive(Clone)]
pub struct Component {
    health: Health,
    index: usize,
}

impl Health {
    /// A daemon without components, which is ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// A component that is not ready until it says so.
    pub fn component(&self, name: impl Into<String>) -> Component {
        let mut components = lock(&self.components);
        components.push((name.into(), Err("starting".to_owned())));
        Component { health: self.clone(), index: components.len() - 1 }
    }

    /// Every component that is not ready, and why.
    pub fn troubles(&self) -> Vec<(String, String)> {
        let components = lock(&self.components);
        components
            .iter()
            .filter_map(|(name, state)| state.as_ref().err().map(|reason| (name.clone(), reason.clone())))
            .collect()
    }
}

impl Component {
    /// Says how it is now.
    pub fn set(&self, state: Result<(), String>) {
        let mut components = lock(&self.health.components);
        components[self.index].1 = state;
    }
}

/// The endpoints of operations, wherever they are mounted.
#[derive(Clone)]
pub struct Admin {
    registry: Registry,
    health: Health,
}

impl Admin {
    /// Shows this registry and this health.
    pub fn new(registry: Registry, health: Health) -> Self {
        Admin { registry, health }
    }

    /// The answer to a GET or HEAD of one of the three paths; `None` for every other path. Another method is 405.
    pub fn answer(&self, head: &Head) -> Option<Response> {
        let answer: fn(&Self) -> Response = match head.path.as_str() {
            "/metrics" => Self::metrics,
            "/healthz" => |_| Response::json(200, br#"{"status":"ok"}"#.to_vec()),
            "/readyz" => Self::readiness,
            _ => return None,
        };
        if head.method == "GET" || head.method == "HEAD" {
            return Some(answer(self));
        }
        Some(Response::text(405, "only GET and HEAD\n").with_header("Allow", "GET, HEAD"))
    }

    fn metrics(&self) -> Response {
        Response::new(200, "text/plain; version=0.0.4; charset=utf-8", self.registry.render())
    }

    fn readiness(&self) -> Response {
        let troubles = self.health.troubles();
        let reasons: serde_json::Map<_, _> = troubles.into_iter().map(|(name, reason)| (name, reason.into())).collect();
        let (status, word) = if reasons.is_empty() { (200, "ready") } else { (503, "not ready") };
        Response::json(status, serde_json::json!({"status": word, "reasons": reasons}).to_string())
    }
}

/// A port of its own: these endpoints and nothing else.
impl Handler for Admin {
    fn admit(self: Arc<Self>, head: &Head) -> Admission {
        let elsewhere = || Response::text(404, "only /metrics, /healthz and /readyz are here\n");
        Admission::Refuse(self.answer(head).unwrap_or_else(elsewhere))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(admin: &Admin, method: &'static str, path: &str) -> Option<(u16, String)> {
        let head = Head { method: method.into(), path: path.into(), ..Head::default() };
        admin.answer(&head).map(|response| (response.status, String::from_utf8(response.body).unwrap()))
    }

    #[test]
    fn readiness_names_what_is_missing() {
        let health = Health::new();
        let admin = Admin::new(Registry::new(), health.clone());
        assert_eq!(ask(&admin, "GET", "/readyz").unwrap().0, 200);
        let broker = health.component("broker");
        let (status, body) = ask(&admin, "GET", "/readyz").unwrap();
        assert_eq!((status, body.contains("\"broker\":\"starting\"")), (503, true), "{body}");
        broker.set(Ok(()));
        assert_eq!(ask(&admin, "GET", "/readyz").unwrap().0, 200);
        assert_eq!(ask(&admin, "GET", "/healthz").unwrap().0, 200);
        assert_eq!(ask(&admin, "POST", "/healthz").unwrap().0, 405);
        assert_eq!(ask(&admin, "GET", "/other"), None);
    }
}
