//! stub
use std::time::Instant;
use super::config::BrokerAddress;
use super::connection::Connector;
use super::metadata::{MetadataResponse, MetadataTopics, MetadataRequest};
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct ClientError { pub reason: String }
pub struct MetadataClient { connector: Connector, bootstrap: Vec<BrokerAddress>, c: Option<super::connection::Connection> }
impl MetadataClient {
    pub fn new(connector: Connector, bootstrap: Vec<BrokerAddress>) -> Self { MetadataClient { connector, bootstrap, c: None } }
    pub fn request(&mut self, topics: MetadataTopics, deadline: Instant) -> Result<MetadataResponse, ClientError> {
        if self.c.is_none() { self.c = Some(self.connector.connect(&self.bootstrap[0], deadline).map_err(|e| ClientError{reason:e.to_string()})?); }
        let r = self.c.as_mut().unwrap().call(&MetadataRequest{topics, allow_auto_create:false}, deadline);
        if r.is_err() { self.c = None; }
        r.map_err(|e| ClientError{reason:e.to_string()})
    }
}
