// The onboarding of a customer, with openapi-fetch and the types of openapi-typescript.
import createClient from "openapi-fetch";

import type { paths } from "./schema.js";
import { apiUrl, connectNumber, cursorOf, headers, poll, present, same } from "../site.js";

const api = createClient<paths>({ baseUrl: apiUrl, headers });

// Created once, however often it is asked for.
const creation = {
  params: { header: { "Idempotency-Key": "openapi-fetch-1" } },
  body: { name: "Ada's Bakery", external_customer_id: "openapi-fetch-ada", language: "es" },
} as const;
const created = await api.POST("/customers/", creation);
const customer = present(created.data, "the new customer");
same(created.response.status, 201, "the status of the creation");
same(customer.status, "not_invited", "the status of the new customer");
same(customer.email, null, "the e-mail address of the new customer");
const repeated = await api.POST("/customers/", creation);
same(repeated.data, customer, "the answer to the repeated request");
same(repeated.response.headers.get("Idempotent-Replayed"), "true", "Idempotent-Replayed");
const minimal = await api.POST("/customers/", { body: { name: "Grace" } });
const other = present(minimal.data, "the other customer");

// Errors have types, too.
const nameless = await api.POST("/customers/", { body: { name: " " } });
same(nameless.response.status, 400, "the status for a name of spaces");
same(nameless.error?.code, "invalid", "the code for a name of spaces");
same(nameless.error?.fields["name"]?.[0]?.code, "blank", "the error of the name");
const missing = await api.GET("/customers/{id}/", { params: { path: { id: 9007199254740991 } } });
same([missing.response.status, missing.error?.code], [404, "not_found"], "a missing customer");

// Found by name and by status and the site's own ids, and changed.
const found = await api.GET("/customers/", { params: { query: { search: "bakery" } } });
same(found.data?.results.map((one) => one.id), [customer.id], "customers by name");
const query = {
  external_customer_id: ["openapi-fetch-ada", present(other.external_customer_id, "a generated id")],
  status: ["not_invited" as const, "invited" as const],
  ordering: "name" as const,
};
const both = await api.GET("/customers/", { params: { query } });
same(both.data?.results.map((one) => one.id), [customer.id, other.id], "customers, sorted");
const path = { id: customer.id };
const email = "ada@example.com";
const changed = await api.PATCH("/customers/{id}/", { params: { path }, body: { email } });
same([changed.data?.name, changed.data?.email], ["Ada's Bakery", email], "the changed customer");

// A list, page by page.
const ids: number[] = [];
for (let page = 1, isLast = false; !isLast; page++) {
  const answer = await api.GET("/customers/", { params: { query: { page, page_size: 1 } } });
  const { results, next } = present(answer.data, `page ${page}`);
  ids.push(...results.map((one) => one.id));
  isLast = next === null;
}
same(ids, [other.id, customer.id], "all customers, newest first");

// Invited.
const invited = await api.POST("/setup-links/", {
  params: { header: { "Idempotency-Key": "openapi-fetch-2" } },
  body: {
    customer: customer.id,
    options: { allowed_connection_types: ["coexistence"], language: "es" },
    next_url: "/welcome/",
  },
});
const link = present(invited.data, "the setup link");
same([link.customer, link.status, link.token], [customer.id, "active", null], "the setup link");
const getStatus = (etag?: string) =>
  api.GET("/customers/{id}/status/", {
    params: { path, ...(etag === undefined ? {} : { header: { "If-None-Match": etag } }) },
  });
const waiting = await getStatus();
same(waiting.data?.status, "invited", "the status after the invitation");
const unchanged = await getStatus(present(waiting.response.headers.get("ETag"), "the ETag"));
same(unchanged.response.status, 304, "the status while nothing has changed");

// Connected by the customer.
await connectNumber(
  present(link.connect_url, "the personal link"),
  present(link.url, "the URL of Kapso's page"),
);
const connected = await poll(getStatus, (answer) => answer.data?.status === "connected");
same(connected.data?.status, "connected", "the status in the end");
const number = present(connected.data?.connection, "the connected number");
const connection = await api.GET("/connections/{id}/", { params: { path: { id: number.id } } });
same(
  [connection.data?.customer, connection.data?.setup_link, connection.data?.connection_type],
  [customer.id, link.id, "coexistence"],
  "the connection",
);

// The timeline, by cursor, newest first.
const kinds: string[] = [];
let cursor: string | undefined;
do {
  const query = { customer: [customer.id], page_size: 2, ...(cursor === undefined ? {} : { cursor }) };
  const page = present((await api.GET("/events/", { params: { query } })).data, "the timeline");
  kinds.push(...page.results.map((event) => event.kind));
  cursor = cursorOf(page.next);
} while (cursor !== undefined);
same(kinds.at(-1), "setup_link_created", "the first event");
same(kinds.filter((kind) => kind === "connected").length, 1, "how often it was connected");

// Disconnected by staff.
const disconnected = await api.POST("/connections/{id}/disconnect/", {
  params: { path: { id: number.id } },
});
same(disconnected.data?.status, "disconnected", "the connection in the end");
const ends = await api.GET("/events/", {
  params: { query: { connection: [number.id], kind: ["disconnected"] } },
});
same(ends.data?.results.map((event) => event.source), ["manual"], "who disconnected it");

// A batch, worked on until it is finished.
const started = await api.POST("/batches/", {
  params: { header: { "Idempotency-Key": "openapi-fetch-3" } },
  body: { purpose: "invite", customers: [other.id] },
});
const batch = { id: present(started.data, "the batch").id };
const worked = await poll(
  () => api.POST("/batches/{id}/work/", { params: { path: batch } }),
  (answer) => answer.data?.state === "finished",
);
same([worked.data?.state, worked.error?.code], ["finished", undefined], "the batch in the end");
const invitations = await api.GET("/batches/{id}/invitations/", { params: { path: batch } });
same(
  invitations.data?.results.map((one) => [one.customer, one.status]),
  [[other.id, "done"]],
  "the invitations of the batch",
);

// Sent by e-mail, once.
await api.PATCH("/customers/{id}/", {
  params: { path: { id: other.id } },
  body: { email: "grace@example.com" },
});
const sending = {
  params: { path: { id: other.id }, header: { "Idempotency-Key": "openapi-fetch-4" } },
};
const sent = await api.POST("/customers/{id}/send-invitation/", sending);
same(sent.data?.to, "grace@example.com", "where the e-mail was sent");
const again = await api.POST("/customers/{id}/send-invitation/", sending);
same(again.data, sent.data, "the answer to the repeated request for an e-mail");
console.log("The story was played.");
