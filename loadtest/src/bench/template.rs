//! Configuration files with places to fill in: `@port@`.

/// A configuration file as it stands in `loadtest/bench`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Template {
    /// The name of its file.
    pub(super) name: &'static str,
    text: &'static str,
}

macro_rules! templates {
    ($($constant:ident $name:literal)*) => {
        $(pub(super) const $constant: Template =
            Template { name: $name, text: include_str!(concat!("../../bench/", $name)) };)*
        #[cfg(test)]
        const ALL: &[Template] = &[$($constant),*];
    };
}

templates! {
    CROSSFADE_HTTP "crossfade-http.toml"
    CROSSFADE_MIRROR "crossfade-mirror.toml"
    CROSSFADE_MQTT "crossfade-mqtt.toml"
    CROSSFADE_TCP "crossfade-tcp.toml"
    ENVOY_HTTP "envoy-http.yaml"
    ENVOY_TCP "envoy-tcp.yaml"
    HAPROXY_HTTP "haproxy-http.cfg"
    HAPROXY_TCP "haproxy-tcp.cfg"
    MOSQUITTO "mosquitto.conf"
    NGINX_HTTP "nginx-http.conf"
    NGINX_TCP "nginx-tcp.conf"
    ORIGIN "origin.conf"
}

impl Template {
    /// The text with each `@name@` replaced by its value. Values whose place is not in it are left over without a word.
    pub(super) fn fill(self, values: &[(&str, String)]) -> String {
        values.iter().fold(self.text.to_owned(), |text, (name, value)| text.replace(&format!("@{name}@"), value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names that are left, in order.
    fn places(text: &str) -> Vec<&str> {
        let is_name = |part: &&str| !part.is_empty() && part.chars().all(|c| c.is_ascii_lowercase() || c == '_');
        text.split('@').skip(1).filter(is_name).collect()
    }

    #[test]
    fn places_are_filled_and_the_rest_stays() {
        let template = Template { name: "x", text: "listen @port@; # @port@, {$var} \"@type\": a@b\nto @blue@" };
        let text = template.fill(&[("port", "8080".to_owned()), ("blue", "1".to_owned()), ("green", "2".to_owned())]);
        assert_eq!(text, "listen 8080; # 8080, {$var} \"@type\": a@b\nto 1");
    }

    #[test]
    fn every_place_of_every_file_is_known() {
        let known = [
            "admin_port",
            "blue",
            "dir",
            "green",
            "load_stream",
            "mirror_green",
            "pem",
            "port",
            "reuseport",
            "tls_port",
            "workers",
        ];
        let values = known.map(|name| (name, "1".to_owned()));
        for template in ALL {
            let left = template.fill(&values);
            assert_eq!(places(&left), Vec::<&str>::new(), "{}", template.name);
            assert!(!places(template.text).is_empty(), "{}", template.name);
        }
    }
}
