//! The admin endpoints of every daemon: `/metrics`, `/healthz` and `/readyz`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::http::{Admission, Body, Handler, Head, Response, SharedBytes};
use crate::locks::lock;
use crate::logging;
use crate::metrics::Registry;

/// The methods of the admin endpoints.
const ALLOWED: &str = "GET, HEAD, OPTIONS";
/// The media type of the Prometheus text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Readiness of the components of a daemon. Clones share the components.
#[derive(Clone, Default)]
pub struct Health {
    /// The lock is never held during IO.
    components: Arc<Mutex<Components>>,
}

#[derive(Default)]
struct Components {
    /// By number, so in the order in which they were added.
    states: BTreeMap<u64, ComponentState>,
    last_number: u64,
}

/// Name of a component, and `Ok` if it is ready or else the reason why it is not.
type ComponentState = (String, Result<(), String>);

/// One component whose readiness is part of `/readyz`.
#[derive(Clone)]
pub struct Component {
    health: Health,
    number: u64,
}

impl Health {
    /// Creates the health of a daemon without components, which counts as ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a component. It is not ready, with the reason "starting", until [`Component::set`] is called.
    pub fn component(&self, name: impl Into<String>) -> Component {
        let mut components = lock(&self.components);
        components.last_number += 1;
        let number = components.last_number;
        components.states.insert(number, (name.into(), Err("starting".to_owned())));
        Component { health: self.clone(), number }
    }

    /// Returns the name of each component that is not ready, and the reason.
    pub fn troubles(&self) -> Vec<(String, String)> {
        let components = lock(&self.components);
        components
            .states
            .values()
            .filter_map(|(name, state)| state.as_ref().err().map(|reason| (name.clone(), reason.clone())))
            .collect()
    }
}

impl Component {
    /// Sets the state of the component: `Ok` if it is ready, or else the reason why it is not. No effect after
    /// [`Component::remove`].
    pub fn set(&self, state: Result<(), String>) {
        if let Some(component) = lock(&self.health.components).states.get_mut(&self.number) {
            component.1 = state;
        }
    }

    /// Removes the component and its clones from the health.
    pub fn remove(&self) {
        lock(&self.health.components).states.remove(&self.number);
    }
}

/// The admin endpoints, for a port of their own or for a port that also serves other paths.
#[derive(Clone)]
pub struct Admin {
    registry: Registry,
    health: Health,
    more_metrics: Option<MoreMetrics>,
}

/// Returns metrics that are not in the registry: a part of this answer alone, and a part that all answers share.
pub type MoreMetrics = Arc<dyn Fn() -> (Vec<u8>, SharedBytes) + Send + Sync>;

impl Admin {
    /// Creates endpoints that show this registry, with the metrics of the log, and this health.
    pub fn new(registry: Registry, health: Health) -> Self {
        logging::register_metrics(&registry);
        Admin { registry, health, more_metrics: None }
    }

    /// Adds metrics that are not in the registry. No metric may be in both.
    #[must_use]
    pub fn with_metrics(mut self, more: MoreMetrics) -> Self {
        self.more_metrics = Some(more);
        self
    }

    /// Returns the health that `/readyz` shows.
    pub(crate) fn health(&self) -> &Health {
        &self.health
    }

    /// Returns the response to a request for one of the three paths, and `None` for every other path. Methods other
    /// than GET, HEAD and OPTIONS are answered with 405. Load balancers probe `/` unless they are configured otherwise,
    /// some with OPTIONS, so these probes are answered with 200 too.
    pub fn answer(&self, head: &Head) -> Option<Response> {
        let endpoint: fn(&Self) -> Response = match head.path.as_str() {
            "/metrics" => Self::metrics,
            "/healthz" => |_| Self::alive(),
            "/readyz" => Self::readiness,
            "/" if matches!(&*head.method, "GET" | "HEAD" | "OPTIONS") => |_| Self::alive(),
            "*" => |_| Self::alive(),
            _ => return None,
        };
        Some(match &*head.method {
            "HEAD" if head.path == "/metrics" => Response::new(200, METRICS_TYPE, Body::Omitted),
            "GET" | "HEAD" => endpoint(self),
            "OPTIONS" => Response::new(200, "", "").with_header("Allow", ALLOWED),
            _ => Response::text(405, "method not allowed: use GET or HEAD\n").with_header("Allow", ALLOWED),
        })
    }

    /// Returns the response to a request for another path.
    pub(crate) fn not_found() -> Response {
        Response::text(404, "not found: use /metrics, /healthz or /readyz\n")
    }

    fn alive() -> Response {
        Response::json(200, br#"{"status":"ok"}"#.to_vec())
    }

    fn metrics(&self) -> Response {
        let mut start = self.registry.render();
        let body: Body = match &self.more_metrics {
            None => start.into(),
            Some(more) => {
                let (own, bytes) = more();
                start.extend(own);
                Body::Shared { start, bytes, end: b"" }
            }
        };
        Response::new(200, METRICS_TYPE, body)
    }

    fn readiness(&self) -> Response {
        let troubles = self.health.troubles();
        let reasons: serde_json::Map<_, _> = troubles.into_iter().map(|(name, reason)| (name, reason.into())).collect();
        let (status, word) = if reasons.is_empty() { (200, "ready") } else { (503, "not ready") };
        Response::json(status, serde_json::json!({"status": word, "reasons": reasons}).to_string())
    }
}

/// The handler of an admin port, which answers 404 for every path other than the three endpoints.
impl Handler for Admin {
    fn admit(self: Arc<Self>, head: &Head) -> Admission {
        Admission::Refuse(self.answer(head).unwrap_or_else(Self::not_found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(admin: &Admin, method: &'static str, path: &str) -> Option<(u16, String)> {
        let head = Head { method: method.into(), path: path.into(), ..Head::default() };
        admin.answer(&head).map(|response| (response.status, String::from_utf8(response.body.to_vec()).unwrap()))
    }

    #[test]
    fn metrics_that_are_not_in_the_registry_follow_its_own() {
        let registry = Registry::new();
        registry.gauge("level", "Level.", &[]).with_label_values::<&str>(&[]).set(1);
        let more: MoreMetrics = Arc::new(|| (b"own 2\n".to_vec(), b"shared 3\n".to_vec().into()));
        let admin = Admin::new(registry, Health::new()).with_metrics(more);
        let (_, text) = request(&admin, "GET", "/metrics").unwrap();
        assert!(text.contains("\nlevel 1\n") && text.ends_with("\nown 2\nshared 3\n"), "{text}");
    }

    #[test]
    fn readiness_names_the_components_that_are_not_ready() {
        let health = Health::new();
        let admin = Admin::new(Registry::new(), health.clone());
        assert_eq!(request(&admin, "GET", "/readyz").unwrap().0, 200);
        let broker = health.component("broker");
        let (status, body) = request(&admin, "GET", "/readyz").unwrap();
        assert_eq!((status, body.contains("\"broker\":\"starting\"")), (503, true), "{body}");
        broker.set(Ok(()));
        assert_eq!(request(&admin, "GET", "/readyz").unwrap().0, 200);
        let (removed, other) = (health.component("removed"), health.component("other"));
        removed.remove();
        removed.clone().set(Err("late".to_owned()));
        other.set(Ok(()));
        assert_eq!(request(&admin, "GET", "/readyz").unwrap().0, 200);
        assert_eq!(request(&admin, "GET", "/healthz").unwrap().0, 200);
        assert_eq!(request(&admin, "POST", "/healthz").unwrap().0, 405);
        for (method, path, status) in [
            ("OPTIONS", "*", Some(200)),
            ("OPTIONS", "/", Some(200)),
            ("OPTIONS", "/healthz", Some(200)),
            ("OPTIONS", "/readyz", Some(200)),
            ("OPTIONS", "/metrics", Some(200)),
            ("GET", "/", Some(200)),
            ("HEAD", "/", Some(200)),
            ("HEAD", "/metrics", Some(200)),
            ("POST", "/", None),
            ("OPTIONS", "/other", None),
            ("DELETE", "/metrics", Some(405)),
        ] {
            assert_eq!(request(&admin, method, path).map(|answer| answer.0), status, "{method} {path}");
        }
        assert_eq!(request(&admin, "GET", "/other"), None);
    }
}
