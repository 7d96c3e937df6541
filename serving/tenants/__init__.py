"""Who asks: keys, scopes, limits, budgets, and the record of what they did."""

from serving.tenants.tenant import LOCAL, SCOPES, Quotas, Tenant, tenant_of

__all__ = ["LOCAL", "SCOPES", "Quotas", "Tenant", "tenant_of"]
