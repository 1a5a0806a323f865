//! Names of what is made for a Comune.
//!
//! The schema keeps every part short enough and free of double hyphens, so no name here has to be shortened; two
//! different Comuni can still ask for the same namespace (`san` + `stino-x`, `san-stino` + `x`), which the
//! [`Register`](crate::Register) turns into a conflict.

/// Namespace of an environment.
pub fn namespace(comune: &str, environment: &str) -> String {
    format!("{comune}-{environment}")
}

/// Binding Secret of a database, in the namespace of its environment.
pub fn binding_secret(database: &str) -> String {
    format!("db-{database}")
}

/// Host name of a service that declares none: `<service>.<comune>.<domain>` in `produzione`, with the environment
/// before the Comune elsewhere.
pub fn default_hostname(service: &str, environment: &str, comune: &str, domain: &str) -> String {
    if environment == "produzione" {
        format!("{service}.{comune}.{domain}")
    } else {
        format!("{service}.{environment}.{comune}.{domain}")
    }
}

/// Value of the component label on the objects of a service.
pub fn service_component(service: &str) -> String {
    format!("service-{service}")
}

/// Claim of a persistent volume of a service. Neither part holds a double hyphen, so two claims never meet.
pub fn volume_claim(service: &str, volume: &str) -> String {
    format!("{service}--{volume}")
}

/// Name that every object of the operator in a namespace begins with where it is not named after a service.
pub const PREFIX: &str = "conme-";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn namespaces_fit_into_a_label(comune in "[a-z][a-z0-9]{0,39}", environment in "[a-z][a-z0-9]{0,19}") {
            prop_assert!(namespace(&comune, &environment).len() <= 63);
        }
    }

    #[test]
    fn the_environment_shows_in_the_host_name_outside_production() {
        assert_eq!(default_hostname("gis", "produzione", "dolo", "x.it"), "gis.dolo.x.it");
        assert_eq!(default_hostname("gis", "collaudo", "dolo", "x.it"), "gis.collaudo.dolo.x.it");
    }
}
