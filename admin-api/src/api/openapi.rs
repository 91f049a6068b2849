//! What all calls have in common, for the OpenAPI document: errors and tokens.

use utoipa::openapi::{
    Components, Content, HttpMethod, OpenApi, Ref, RefOr, Response, ResponseBuilder,
    path::Operation,
    schema::{AdditionalProperties, ObjectBuilder, Schema, Type},
    security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
};

use super::OPEN_PATHS;

/// Adds to every operation the errors that it shares with others, unless it describes them itself, and says which ones
/// need a token.
pub(super) fn complete(document: &mut OpenApi) {
    let components = document.components.get_or_insert_with(Components::new);
    components.responses.extend(SHARED.iter().map(|shared| (shared.name.to_owned(), shared.response().into())));
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("A token of the file in admin.tokens; none where that is not set"))
        .build();
    components.add_security_scheme(SCHEME, SecurityScheme::Http(bearer));

    let of_plans = ["PlanStartRequest", "PlanRequest", "PlanApproveRequest", "PlanSkipRequest"];
    for body in ["RollbackRequest", "ResetRequest", "SignalRequest", "SplitRequest"].into_iter().chain(of_plans) {
        let Some(RefOr::T(Schema::Object(body_schema))) = components.schemas.get_mut(body) else { continue };
        let others = if body == "SplitRequest" { sides_by_label() } else { AdditionalProperties::FreeForm(false) };
        body_schema.additional_properties = Some(Box::new(others));
        if body == "SplitRequest" {
            let names = ObjectBuilder::new().schema_type(Type::String).pattern(Some("^(route|.+_percentage)$"));
            body_schema.property_names = Some(Box::new(names.into()));
        }
    }

    for (path, item) in &mut document.paths.paths {
        let of_methods = [(HttpMethod::Get, &mut item.get), (HttpMethod::Post, &mut item.post)];
        for (method, operation) in of_methods {
            if let Some(operation) = operation {
                complete_operation(operation, path, &method);
            }
        }
    }
}

fn complete_operation(operation: &mut Operation, path: &str, method: &HttpMethod) {
    let open = OPEN_PATHS.contains(&path);
    for shared in SHARED {
        let occurs = match shared.occurs {
            Occurs::Always => true,
            Occurs::WithToken => !open,
            Occurs::WithFields => !open && !path.contains('{'),
            Occurs::WithBody => *method == HttpMethod::Post,
        };
        if occurs {
            let responses = &mut operation.responses.responses;
            responses
                .entry(shared.status.to_owned())
                .or_insert_with(|| RefOr::Ref(Ref::from_response_name(shared.name)));
        }
    }
    let bearer = SecurityRequirement::new::<_, [&str; 0], &str>(SCHEME, []);
    // Without admin.tokens nothing is asked for.
    operation.security = Some(if open { Vec::new() } else { vec![bearer, SecurityRequirement::default()] });
}

/// What `LABEL_percentage` may be: which labels there are depends on the configuration.
fn sides_by_label() -> AdditionalProperties<Schema> {
    ObjectBuilder::new()
        .schema_type(Type::Number)
        .description(Some("LABEL_percentage: a side by the label of its arm, 0 to 100 in steps of 0.01"))
        .minimum(Some(0))
        .maximum(Some(100))
        .into()
}

const SCHEME: &str = "token";

/// An error that more than one operation may answer with.
struct Shared {
    name: &'static str,
    status: &'static str,
    occurs: Occurs,
    description: &'static str,
}

enum Occurs {
    Always,
    /// Where a token may be asked for.
    WithToken,
    /// Where a query or a body has fields.
    WithFields,
    WithBody,
}

const SHARED: [Shared; 11] = [
    Shared {
        name: "BadRequest",
        status: "400",
        occurs: Occurs::Always,
        description: "A Host that is missing, repeated or malformed; a malformed query, header or body",
    },
    Shared {
        name: "Unauthorized",
        status: "401",
        occurs: Occurs::WithToken,
        description: "No token, or one that is not known",
    },
    Shared {
        name: "Forbidden",
        status: "403",
        occurs: Occurs::Always,
        description: "A browser sent this from another site; or the token may only read, and this would change something",
    },
    Shared {
        name: "MethodNotAllowed",
        status: "405",
        occurs: Occurs::Always,
        description: "The path does not take this method; the header Allow lists those it does",
    },
    Shared {
        name: "RequestTimeout",
        status: "408",
        occurs: Occurs::WithBody,
        description: "The body took longer than 10 s",
    },
    Shared { name: "TooLong", status: "413", occurs: Occurs::WithBody, description: "The body is longer than 64 KiB" },
    Shared {
        name: "UnsupportedMediaType",
        status: "415",
        occurs: Occurs::WithBody,
        description: "The body is not declared as application/json",
    },
    Shared {
        name: "Misdirected",
        status: "421",
        occurs: Occurs::Always,
        description: "A Host that is not served here",
    },
    Shared {
        name: "Unprocessable",
        status: "422",
        occurs: Occurs::WithFields,
        description: "Fields or parameters that are unknown, repeated, missing or make no sense; faults has them all",
    },
    Shared {
        name: "Abandoned",
        status: "500",
        occurs: Occurs::WithBody,
        description: "The change was abandoned; read the state of its route",
    },
    Shared {
        name: "Unavailable",
        status: "503",
        occurs: Occurs::Always,
        description: "The state file cannot be used; or, without a body, more than 256 connections are open",
    },
];

impl Shared {
    fn response(&self) -> Response {
        let problem = Content::new(Some(Ref::from_schema_name("Problem")));
        ResponseBuilder::new().description(self.description).content("application/problem+json", problem).build()
    }
}
