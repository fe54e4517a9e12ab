//! A client of the brokers of a cluster, which is replaced when the brokers are.

/// Makes a client for the brokers at these addresses, or returns why that failed.
pub(super) type Connect<T> = Box<dyn FnMut(&[String]) -> Result<Box<T>, String> + Send>;

/// A client that is made when it is needed first.
pub(super) struct Client<T: ?Sized> {
    connect: Connect<T>,
    /// With the addresses that it was made for.
    made: Option<(Vec<String>, Box<T>)>,
}

impl<T: ?Sized> Client<T> {
    /// Makes none yet.
    pub(super) fn new(connect: Connect<T>) -> Self {
        Client { connect, made: None }
    }

    /// Returns the client. It is kept while the addresses have one in common, because it finds the other brokers by
    /// itself.
    pub(super) fn get(&mut self, hosts: &[String]) -> Result<&mut T, String> {
        let made = match self.made.take() {
            Some(made) if made.0.iter().any(|host| hosts.contains(host)) => made,
            _ if hosts.is_empty() => return Err("no broker is registered in ZooKeeper".to_owned()),
            _ => (hosts.to_vec(), (self.connect)(hosts)?),
        };
        Ok(&mut *self.made.insert(made).1)
    }

    /// Returns the client if there is one.
    pub(super) fn known(&mut self) -> Option<&mut T> {
        self.made.as_mut().map(|(_, client)| &mut **client)
    }

    /// Drops the client: the next one is made for the addresses of then.
    pub(super) fn forget(&mut self) {
        self.made = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_kept_while_one_of_its_addresses_is_there() {
        let connect = |hosts: &[String]| match hosts[0].as_str() {
            "down:1" => Err("no route".to_owned()),
            _ => Ok(Box::new(hosts.join(","))),
        };
        let mut client: Client<String> = Client::new(Box::new(connect));
        let hosts = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(client.known(), None);
        assert!(client.get(&[]).unwrap_err().contains("no broker is registered"));
        assert_eq!(client.get(&hosts("a:1 b:1")).unwrap(), "a:1,b:1");
        assert_eq!(client.get(&hosts("c:1 b:1")).unwrap(), "a:1,b:1");
        assert_eq!(client.get(&hosts("c:1")).unwrap(), "c:1");
        assert_eq!(client.get(&hosts("down:1")).unwrap_err(), "no route");
        assert_eq!(client.known(), None);
        assert_eq!(client.get(&hosts("c:1")).unwrap(), "c:1");
        client.forget();
        assert_eq!(client.get(&hosts("d:1 c:1")).unwrap(), "d:1,c:1");
    }
}
