// The onboarding of a customer, with the functions that orval generates.
import { connectNumber, cursorOf, poll, present, same } from "../site.js";
import * as api from "./client.js";

/** Return the data of an answer with the status that is expected. */
function expect<R extends { status: number; data: unknown }, S extends R["status"]>(
  answer: R,
  status: S,
): Extract<R, { status: S }>["data"] {
  if (answer.status !== status) throw new Error(`${answer.status}: ${JSON.stringify(answer.data)}`);
  return answer.data;
}

// Created once, however often it is asked for.
const wanted = { name: "Ada's Bakery", external_customer_id: "orval-ada", language: "es" } as const;
const key = { "Idempotency-Key": "orval-1" };
const customer = expect(await api.kapsoCustomersCreate(wanted, key), 201);
same([customer.status, customer.email], ["not_invited", null], "the new customer");
const repeated = await api.kapsoCustomersCreate(wanted, key);
same(expect(repeated, 201), customer, "the answer to the repeated request");
same(repeated.headers.get("Idempotent-Replayed"), "true", "Idempotent-Replayed");
const other = expect(await api.kapsoCustomersCreate({ name: "Grace" }), 201);

// Errors have types, too.
const nameless = expect(await api.kapsoCustomersCreate({ name: " " }), 400);
same(nameless.code, "invalid", "the code for a name of spaces");
same(nameless.fields["name"]?.[0]?.code, "blank", "the error of the name");
const missing = expect(await api.kapsoCustomersRetrieve(Number.MAX_SAFE_INTEGER), 404);
same(missing.code, "not_found", "a missing customer");

// Found by name and by status and the site's own ids, and changed.
const found = expect(await api.kapsoCustomersList({ search: "bakery" }), 200);
same(found.results.map((one) => one.id), [customer.id], "customers by name");
const both = await api.kapsoCustomersList({
  external_customer_id: ["orval-ada", present(other.external_customer_id, "a generated id")],
  status: ["not_invited", "invited"],
  ordering: "name",
});
const sorted = expect(both, 200).results.map((one) => one.id);
same(sorted, [customer.id, other.id], "customers, sorted");
const email = "ada@example.com";
const changed = expect(await api.kapsoCustomersPartialUpdate(customer.id, { email }), 200);
same([changed.name, changed.email], ["Ada's Bakery", email], "the changed customer");

// A list, page by page.
const ids: number[] = [];
for (let page = 1, isLast = false; !isLast; page++) {
  const { results, next } = expect(await api.kapsoCustomersList({ page, page_size: 1 }), 200);
  ids.push(...results.map((one) => one.id));
  isLast = next === null;
}
same(ids, [other.id, customer.id], "all customers, newest first");

// Invited.
const link = expect(
  await api.kapsoSetupLinksCreate(
    {
      customer: customer.id,
      options: { allowed_connection_types: ["coexistence"], language: "es" },
      next_url: "/welcome/",
    },
    { "Idempotency-Key": "orval-2" },
  ),
  201,
);
same([link.customer, link.status, link.token], [customer.id, "active", null], "the setup link");
const waiting = await api.kapsoCustomersStatus(customer.id);
same(expect(waiting, 200).status, "invited", "the status after the invitation");
const etag = present(waiting.headers.get("ETag"), "the ETag");
expect(await api.kapsoCustomersStatus(customer.id, { "If-None-Match": etag }), 304);

// Connected by the customer.
await connectNumber(
  present(link.connect_url, "the personal link"),
  present(link.url, "the URL of Kapso's page"),
);
const connected = await poll(
  async () => expect(await api.kapsoCustomersStatus(customer.id), 200),
  (answer) => answer.status === "connected",
);
same(connected.status, "connected", "the status in the end");
const number = present(connected.connection, "the connected number");
const connection = expect(await api.kapsoConnectionsRetrieve(number.id), 200);
same(
  [connection.customer, connection.setup_link, connection.connection_type],
  [customer.id, link.id, "coexistence"],
  "the connection",
);

// The timeline, by cursor, newest first.
const kinds: string[] = [];
let cursor: string | undefined;
do {
  const parameters = { customer: [customer.id], page_size: 2, ...(cursor ? { cursor } : {}) };
  const page = expect(await api.kapsoEventsList(parameters), 200);
  kinds.push(...page.results.map((event) => event.kind));
  cursor = cursorOf(page.next);
} while (cursor !== undefined);
same(kinds.at(-1), "setup_link_created", "the first event");
same(kinds.filter((kind) => kind === "connected").length, 1, "how often it was connected");

// Disconnected by staff.
const disconnected = expect(await api.kapsoConnectionsDisconnect(number.id), 200);
same(disconnected.status, "disconnected", "the connection in the end");
const ends = await api.kapsoEventsList({ connection: [number.id], kind: ["disconnected"] });
same(expect(ends, 200).results.map((event) => event.source), ["manual"], "who disconnected it");

// A batch, worked on until it is finished.
const started = await api.kapsoBatchesCreate(
  { purpose: "invite", customers: [other.id] },
  { "Idempotency-Key": "orval-3" },
);
const batch = expect(started, 201);
const worked = await poll(
  async () => expect(await api.kapsoBatchesWork(batch.id), 200),
  (answer) => answer.state === "finished",
);
same(worked.state, "finished", "the batch in the end");
const invitations = expect(await api.kapsoBatchInvitationsList(batch.id), 200);
same(
  invitations.results.map((one) => [one.customer, one.status]),
  [[other.id, "done"]],
  "the invitations of the batch",
);

// Sent by e-mail, once.
expect(await api.kapsoCustomersPartialUpdate(other.id, { email: "grace@example.com" }), 200);
const sending = { "Idempotency-Key": "orval-4" };
const sent = expect(await api.kapsoCustomersSendInvitation(other.id, sending), 200);
same(sent.to, "grace@example.com", "where the e-mail was sent");
const again = expect(await api.kapsoCustomersSendInvitation(other.id, sending), 200);
same(again, sent, "the answer to the repeated request for an e-mail");
console.log("The story was played.");
